"""Weights that are zero, or too small to matter, and weights that are not numbers.

sparsity    share of entries that are exactly 0
near zero   share of entries under a hundredth of their matrix's rms
"""

from __future__ import annotations

import torch

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.windows import Windows

SMALL = 0.01


@diagnostics.register("weights")
class Weights(Diagnostic):
    """``not_finite`` (number), ``sparsity``, ``near_zero`` (shares, over all parameters)."""

    cost = "weights"

    @torch.no_grad()
    def work(self, windows: Windows) -> None:
        self.broken: list[dict[str, object]] = []
        self.shares: list[dict[str, object]] = []
        total = zeros = small = 0
        for name, weight in self.subject.model.named_parameters():
            bad = weight.numel() - int(weight.isfinite().sum())
            if bad:
                self.broken.append({"matrix": name, "entries": bad})
                continue
            sizes = weight.abs()
            zero, near = int((sizes == 0).sum()), int((sizes < SMALL * sizes.square().mean().sqrt()).sum())
            self.shares.append(
                {"matrix": name, "sparsity": zero / weight.numel(), "near_zero": near / weight.numel()}
            )
            total, zeros, small = total + weight.numel(), zeros + zero, small + max(near, zero)
        self.scalars = {
            "not_finite": float(sum(int(str(place["entries"])) for place in self.broken)),
            "sparsity": zeros / max(total, 1),
            "near_zero": small / max(total, 1),
        }

    def result(self) -> Result:
        found = []
        if self.broken:
            count = int(self.scalars["not_finite"])
            found.append(
                Finding(
                    "weights",
                    "divergence",
                    f"{count} weights of {len(self.broken)} tensors are NaN or infinite",
                    count,
                    0,
                    "no weight of a model that can be used is",
                    "training diverged before this was saved, or the file is damaged: use an earlier checkpoint",
                    tuple(self.broken),
                    float("inf"),
                )
            )
        return Result(self.scalars, {"matrices": self.shares}, found)
