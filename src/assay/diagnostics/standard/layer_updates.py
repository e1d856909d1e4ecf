"""What a map of each token by itself explains of a layer's update.

    u = y − x,   t = (A − 1) x,   r = u − t

with A a diagonal map fitted around each token on its nearest neighbours, x before and y after the layer. A large
cos(u, t) says that the layer mostly treats tokens alone; a large cos(u, r) that it mixes them. Yoo, 2026,
arXiv:2604.02459. In a residual stream cos(y, A x) is near 1 for any small update, so both are given.
"""

from __future__ import annotations

import torch

from assay.diagnostics import Diagnostic, Result, diagnostics
from assay.diagnostics.events import LayerStep
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows
from assay.errors import UserError
from assay.measures.geometry import local_parts, token_figures

TOKENS = 192
NEIGHBOURS = 32
DIRECTIONS = 10


@diagnostics.register("layer-updates")
class LayerUpdates(Diagnostic):
    """``tokenwise`` cos(u, t), ``residual`` cos(u, r), ``state`` cos(y, A x): means over tokens and layers."""

    cost = "passes"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.figures: dict[int, dict[str, float]] = {}

    @torch.no_grad()
    def work(self, windows: Windows) -> None:
        length = windows.ids.shape[1]
        if length < NEIGHBOURS + 2:
            raise UserError(f"windows of {length} tokens are too short; a map of each token needs {NEIGHBOURS + 2}")
        with self.subject.listening(layer=self._measure):
            self.subject.logits(windows.ids[:1, : TOKENS + 1].to(self.subject.device))

    def _measure(self, step: LayerStep) -> None:
        before, after = step.before[0, 1:], step.after[0, 1:]
        if not after.isfinite().all():
            raise UserError(f"the states after layer {step.layer} are not finite")
        parts = local_parts(before, after, neighbours=NEIGHBOURS)
        directions = torch.linalg.svd(parts, full_matrices=False).Vh[:DIRECTIONS].T
        found = token_figures(before, after, parts, directions)
        self.figures[step.layer] = {name: values.nanmean().item() for name, values in found.items()}

    def result(self) -> Result:
        names = {"tokenwise": "update_tokenwise", "residual": "update_residual", "state": "state_tokenwise"}
        arrays = {
            short: [self.figures[layer][name] for layer in sorted(self.figures)] for short, name in names.items()
        }
        return Result({name: sum(values) / len(values) for name, values in arrays.items()}, arrays)
