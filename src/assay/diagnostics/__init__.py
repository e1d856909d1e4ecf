"""Diagnostics: measurements of a language model that end in findings.

    subject     what a model consists of: its layers, their attention and MLP, whatever the architecture
    events      what a pass shows of a layer, reduced while the layer runs
    observing   one pass over a text, at whose events all diagnostics listen
    standard/   the diagnostics, one a file

A diagnostic is constructed for a subject, listens to some events, and sums up::

    @diagnostics.register("residual-norms")
    class ResidualNorms(Diagnostic):
        def on_layer(self, step: LayerStep) -> None: ...
        def result(self) -> Result: ...

It keeps sums, never activations. Those that need more than the one pass do that in ``work``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from assay.diagnostics.events import Attention, LayerStep, Neurons, Output
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows
from assay.registry import Registry

Cost = Literal["pass", "weights", "passes", "gradients"]
"""What a diagnostic needs: the one pass, no text at all, passes of its own, or gradients."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A measured symptom.

    Attributes:
        diagnostic: the name of what found it.
        symptom: an id of the catalogue's symptoms.
        says: what was measured, in a sentence.
        value: the number that was held against the threshold.
        threshold: where a symptom begins.
        source: where the threshold comes from.
        means: what it usually means.
        where: the places, worst first: ``{"layer": 3, "head": 1}``, ``{"layer": 5, "dimension": 17, "token": 0}``.
        excess: how many times worse than the threshold it is, at least 1; infinite for what is broken.
    """

    diagnostic: str
    symptom: str
    says: str
    value: float
    threshold: float
    source: str
    means: str
    where: tuple[Mapping[str, Any], ...] = ()
    excess: float = 1.0


@dataclasses.dataclass(frozen=True)
class Result:
    """What a diagnostic measured.

    Attributes:
        scalars: numbers of the whole model by name, for comparing models and following one over training.
        arrays: numbers by layer, or by layer and something else, as nested lists, for plots.
        findings: the symptoms, worst first.
    """

    scalars: Mapping[str, float]
    arrays: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    findings: Sequence[Finding] = ()


class Diagnostic:
    """What listens to a pass. The events whose methods it does not override are not made for it."""

    cost: ClassVar[Cost] = "pass"

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def on_attention(self, attention: Attention) -> None:
        """Softmax attention of one layer."""

    def on_layer(self, step: LayerStep) -> None:
        """The residual stream before and after one layer."""

    def on_neurons(self, neurons: Neurons) -> None:
        """The hidden activations of one layer's MLP."""

    def on_output(self, output: Output) -> None:
        """The logits."""

    def work(self, windows: Windows) -> None:
        """Passes of its own, after the common one."""

    def result(self) -> Result | None:
        """What was measured; None if the model showed nothing that this listens to."""
        raise NotImplementedError


diagnostics: Registry[Diagnostic] = Registry("diagnostic", "assay.diagnostics.standard")
