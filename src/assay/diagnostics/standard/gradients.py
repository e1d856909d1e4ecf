"""Gradients of the language-modelling loss by layer.

    norm_l           sqrt( Σ over the layer's parameters of ‖∂L/∂w‖² )
    imbalance        max_l norm_l / min_l norm_l
    nuclear norm     Σ s of each matrix's gradient,   effective rank  exp of the entropy of s / Σ s

Mix-LN evens out the first (Li, Yin, Liu, 2024, arXiv:2412.13795); spectra of gradients tell good data from bad (Li,
Li, Li, Zhou, 2025, arXiv:2504.10766).
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
import torch.nn.functional as F

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.windows import Windows
from assay.measures.spectra import effective_rank, nuclear_norm

UNEVEN = 100.0


@diagnostics.register("gradients")
class Gradients(Diagnostic):
    """``norm`` (of all layers), ``imbalance``, ``nuclear_norm`` and ``effective_rank`` (medians over matrices)."""

    cost = "gradients"

    def work(self, windows: Windows) -> None:
        model, subject = self.subject.model, self.subject
        wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        count = 0
        try:
            for parameter, _ in wanted:
                parameter.requires_grad_(True)
            model.zero_grad(set_to_none=True)
            for batch in windows.batches(subject.device):
                for row in batch.ids.split(1):
                    logits = subject.logits(row)[:, :-1].float()
                    F.cross_entropy(logits.flatten(0, 1), row[:, 1:].flatten()).backward()
                    count += 1
            with torch.no_grad():
                self.norms = [self._norm(layer.module) / count for layer in subject.layers]
                self.rows = [self._row(name, matrix.grad / count) for name, matrix in _with_gradients(subject)]
        finally:
            model.zero_grad(set_to_none=True)
            for parameter, required in wanted:
                parameter.requires_grad_(required)

    def _norm(self, module: torch.nn.Module) -> float:
        squares = [p.grad.double().square().sum().item() for p in module.parameters() if p.grad is not None]
        return float(sum(squares) ** 0.5)

    def _row(self, name: str, gradient: torch.Tensor) -> dict[str, Any]:
        wide = (gradient if gradient.shape[0] <= gradient.shape[1] else gradient.T).double()
        if not wide.isfinite().all():
            return {"matrix": name, "nuclear_norm": float("nan"), "effective_rank": float("nan")}
        singular = torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).sqrt()
        return {
            "matrix": name,
            "nuclear_norm": nuclear_norm(singular).item(),
            "effective_rank": effective_rank(singular).item(),
        }

    def result(self) -> Result:
        smallest, largest = min(self.norms), max(self.norms)
        imbalance = largest / max(smallest, 1e-30)
        found = []
        if not imbalance < UNEVEN:
            order = sorted(range(len(self.norms)), key=lambda layer: -self.norms[layer])
            found.append(
                Finding(
                    "gradients",
                    "gradient-imbalance",
                    f"the gradient of layer {order[0]} is {imbalance:.3g} times that of layer {order[-1]}",
                    imbalance,
                    UNEVEN,
                    "chosen here: two orders of magnitude",
                    "one learning rate cannot suit both: some layers hardly train, or others are unstable",
                    tuple({"layer": layer, "norm": self.norms[layer]} for layer in order),
                    imbalance / UNEVEN if imbalance == imbalance else float("inf"),
                )
            )
        ranks = [row["effective_rank"] for row in self.rows if row["effective_rank"] == row["effective_rank"]]
        scalars = {
            "norm": sum(norm**2 for norm in self.norms) ** 0.5,
            "imbalance": imbalance,
            "nuclear_norm": statistics.median(row["nuclear_norm"] for row in self.rows),
            "effective_rank": statistics.median(ranks) if ranks else 0.0,
        }
        return Result(scalars, {"norm": self.norms, "matrices": self.rows}, found)


def _with_gradients(subject: Any) -> list[tuple[str, Any]]:
    return [(name, matrix) for name, matrix in subject.matrices() if matrix.grad is not None]
