"""Poincaré ResNet: a ResNet whose convolutions, batch norms, skips and classifier act in the Poincaré ball.

    x ← relu(BN(conv(relu(BN(conv x)))) ⊕ x)

Feature maps are handed on as tangent vectors at the origin, in which the ReLU and the mean over the image are taken
too; the logits are those of the last linear layer's output.
van Spengler, Berkhout, Mettes, 2023, arXiv:2303.14027.
"""

from __future__ import annotations

import functools
from typing import Annotated, Literal

from pydantic import Field

from assay.models.vision import networks
from assay.models.vision.resnet import Parts, ResNet
from assay.nn.residual.poincare import PoincareBatchNorm, PoincareConv2d, PoincareLinear, poincare_skip
from assay.nn.residual.poincare.linear import Start


@networks.register("poincare-resnet")
def poincare_resnet(
    channels: int,
    num_classes: int,
    *,
    widths: tuple[int, ...] = (8, 16, 32),
    depth: int = 20,
    curvature: Annotated[float, Field(gt=0)] = 0.1,
    start: Start = "identity",
    inference: Literal["running", "batch"] = "running",
) -> ResNet:
    """The ball has the curvature −``curvature``; ``start`` and ``inference`` are those of the layers."""

    def convolution(inputs: int, outputs: int, kernel_size: int, stride: int) -> PoincareConv2d:
        return PoincareConv2d(inputs, outputs, kernel_size, curvature, stride=stride, start=start)

    parts = Parts(
        convolution=convolution,
        norm=functools.partial(PoincareBatchNorm, c=curvature, inference=inference),
        join=functools.partial(poincare_skip, c=curvature),
        classifier=functools.partial(PoincareLinear, c=curvature, start=start),
    )
    return ResNet(parts, channels, num_classes, widths, depth)
