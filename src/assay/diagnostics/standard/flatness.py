"""Flatness of the loss around the weights.

    trace       Tr H by Hutchinson: mean of vᵀHv over random signs v,   beside the number of parameters
    sharpness   max over ‖ε‖ ≤ ρ‖w‖ of L(w + ε) − L(w)

of the loss on one window. At equal loss, the flatter model transfers better: Liu et al., 2022, arXiv:2210.14199;
sharpness: Foret et al., 2020, arXiv:2010.01412.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.windows import Windows
from assay.measures.curvature import hessian_trace, sharpness

LENGTH = 128
PROBES = 4
RADIUS = 0.001
SHARP = 0.5


@diagnostics.register("flatness")
class Flatness(Diagnostic):
    """``trace`` (mean of the Hessian's diagonal), ``sharpness`` (nats, for a step of a thousandth of ‖w‖)."""

    cost = "gradients"

    def work(self, windows: Windows) -> None:
        ids = windows.ids[:1, :LENGTH].to(self.subject.device)
        parameters = list(self.subject.model.parameters())
        wanted = [parameter.requires_grad for parameter in parameters]
        norm = torch.stack([p.detach().float().norm() for p in parameters]).norm().item()

        def loss() -> Tensor:
            logits = self.subject.logits(ids)[:, :-1].float()
            return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

        generator = torch.Generator().manual_seed(0)
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            with sdpa_kernel(SDPBackend.MATH):
                count = sum(parameter.numel() for parameter in parameters)
                self.trace = hessian_trace(loss, parameters, PROBES, generator).mean / count
                self.sharpness = sharpness(loss, parameters, RADIUS * norm)
        finally:
            for parameter, required in zip(parameters, wanted, strict=True):
                parameter.requires_grad_(required)

    def result(self) -> Result:
        found = []
        if not self.sharpness < SHARP:
            found.append(
                Finding(
                    "flatness",
                    "sharp-minimum",
                    f"a step of a thousandth of the weights' length raises the loss by {self.sharpness:.3g} nats",
                    self.sharpness,
                    SHARP,
                    "chosen here: half a nat",
                    "rounding, averaging or fine-tuning will hurt this model more than most",
                    (),
                    self.sharpness / SHARP if self.sharpness == self.sharpness else float("inf"),
                )
            )
        return Result({"trace": self.trace, "sharpness": self.sharpness}, {}, found)
