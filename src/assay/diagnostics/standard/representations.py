"""How compressed the token states of a text are.

    matrix entropy        of the last hidden states, 1 if they fill all directions alike
    matrix nuclear norm   of the same: Σ of the largest column norms over the tokens
    effective rank        exp of the entropy of the singular values of a layer's states, less their mean

The last one is taken of one window, of 256 tokens at most, layer by layer. Li et al., 2024, arXiv:2410.10672 (matrix
nuclear norm beside matrix entropy); Roy, Vetterli, 2007 (effective rank).
"""

from __future__ import annotations

import torch

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.events import LayerStep, Output
from assay.diagnostics.means import Means
from assay.diagnostics.subject import Subject
from assay.measures.spectra import effective_rank, matrix_entropy, matrix_nuclear_norm

COLLAPSED = 0.02
TOKENS = 256
"""Of a window whose states' effective rank is taken, at most: its cost grows with their cube."""


@diagnostics.register("representations")
class Representations(Diagnostic):
    """``matrix_entropy``, ``matrix_nuclear_norm`` (means over windows), ``effective_rank`` (of the last layer, as a
    share of the most that the window allows)."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.means = Means()
        self.ranks: dict[int, float] = {}

    def on_layer(self, step: LayerStep) -> None:
        if step.layer in self.ranks:
            return
        states = step.after[0, 1 : TOKENS + 1].double()
        centred = states - states.mean(0)
        gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
        if not gram.isfinite().all():
            self.ranks[step.layer] = float("nan")
            return
        singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
        self.ranks[step.layer] = effective_rank(singular).item() / len(singular)

    def on_output(self, output: Output) -> None:
        if output.hidden is not None:
            states = output.hidden.float()
            self.means.add("entropy", 0, matrix_entropy(states))
            self.means.add("nuclear", 0, matrix_nuclear_norm(states))

    def result(self) -> Result:
        ranks = [self.ranks[layer] for layer in sorted(self.ranks)]
        scalars = {"effective_rank": ranks[-1]}
        if "entropy" in self.means:
            scalars["matrix_entropy"] = self.means.of("entropy", 0).item()
            scalars["matrix_nuclear_norm"] = self.means.of("nuclear", 0).item()
        found = []
        if ranks[-1] < COLLAPSED:
            found.append(
                Finding(
                    "representations",
                    "representation-collapse",
                    f"the states after the last layer fill {ranks[-1]:.1%} of the directions that they could",
                    ranks[-1],
                    COLLAPSED,
                    "chosen here: the effective rank of one window, beside the largest possible",
                    "different tokens have nearly the same state, so the head can hardly tell them apart",
                    tuple({"layer": i, "effective_rank": r} for i, r in enumerate(ranks) if r < COLLAPSED),
                    COLLAPSED / max(ranks[-1], 1e-6),
                )
            )
        return Result(scalars, {"effective_rank": ranks}, found)
