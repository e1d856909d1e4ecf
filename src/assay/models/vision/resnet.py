"""ResNet for small images: x ← relu(norm(conv(relu(norm(conv x)))) + x).

A first convolution, groups of such blocks, each but the first of which halves the image, the mean over the image, a
linear map. Where the shape changes, the skip is a convolution of one pixel. Depth counts the convolutions but skips,
and the linear map.
He, Zhang, Ren, Sun, 2015, arXiv:1512.03385 (section 4.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import UserError
from assay.models.vision import networks


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a ResNet is made of: ``convolution(inputs, outputs, kernel_size, stride)``, padded so that a stride of 1
    keeps the size, ``norm(channels)``, ``join(branch, x)``, which is the skip connection, and
    ``classifier(features, num_classes)``.
    """

    convolution: Callable[[int, int, int, int], nn.Module]
    norm: Callable[[int], nn.Module]
    join: Callable[[Tensor, Tensor], Tensor]
    classifier: Callable[[int, int], nn.Module]


class ResNet(nn.Module):
    """Raises ``UserError`` for a depth that no number of blocks gives."""

    def __init__(self, parts: Parts, channels: int, num_classes: int, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 2 * len(widths))
        if blocks < 1 or rest:
            known = ", ".join(str(2 * len(widths) * n + 2) for n in (1, 2, 3))
            raise UserError(f"a ResNet of {len(widths)} widths has a depth of {known} .., not {depth}")
        self.stem = nn.Sequential(parts.convolution(channels, widths[0], 3, 1), parts.norm(widths[0]), nn.ReLU())
        self.blocks = nn.Sequential()
        before = widths[0]
        for group, width in enumerate(widths):
            for number in range(blocks):
                self.blocks.append(ResNetBlock(parts, before, width, stride=2 if group and not number else 1))
                before = width
        self.classifier = parts.classifier(before, num_classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


class ResNetBlock(nn.Module):
    def __init__(self, parts: Parts, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.join = parts.join
        self.branch = nn.Sequential(
            parts.convolution(inputs, outputs, 3, stride),
            parts.norm(outputs),
            nn.ReLU(),
            parts.convolution(outputs, outputs, 3, 1),
            parts.norm(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else parts.convolution(inputs, outputs, 1, stride)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs high wide"]:
        return self.join(self.branch(x), self.skip(x)).relu()


@networks.register("resnet")
def resnet(channels: int, num_classes: int, *, widths: tuple[int, ...] = (16, 32, 64), depth: int = 20) -> ResNet:
    """The ResNet of plain convolutions, batch norms and sums."""

    def convolution(inputs: int, outputs: int, kernel_size: int, stride: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2)

    return ResNet(Parts(convolution, nn.BatchNorm2d, torch.add, nn.Linear), channels, num_classes, widths, depth)
