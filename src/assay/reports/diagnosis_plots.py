"""The figures of a diagnosis: what is drawn of the arrays of each diagnostic."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from assay.diagnostics.diagnosis import Diagnosis
from assay.reports.layer_plots import Exponents, Heads, Influence, Lines

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclasses.dataclass(frozen=True)
class Plot:
    """``figures``: one of all models, under None, or one of each that has the numbers, under its index."""

    group: str
    title: str
    note: str
    figures: Mapping[int | None, Figure]


_ATTENTION, _STREAM, _DEPTH, _WEIGHTS = "Attention", "Residual stream", "Use of depth", "Weights and gradients"
_BOTH = ("attention", "mlp", "layer")
PLOTS: tuple[Lines | Heads | Influence | Exponents, ...] = (
    Heads(
        _ATTENTION,
        "Attention to the first token",
        "Mean share of the queries’ attention; a head is a sink from 0.3 on.",
        "attention-sinks",
        "first_token",
        1.0,
    ),
    Heads(
        _ATTENTION,
        "Value drain",
        "Length of the first token’s value beside the mean of the others; near 0, attention to it does nothing.",
        "attention-sinks",
        "value_drain",
    ),
    Heads(
        _ATTENTION,
        "Attention entropy",
        "As a share of the entropy of uniform attention: 0 looks at one key, 1 at all alike.",
        "attention-logits",
        "entropy",
        1.0,
    ),
    Heads(
        _ATTENTION,
        "Largest attention logit",
        "Beyond 100, softmax is one-hot and training tends to spike.",
        "attention-logits",
        "largest_logit",
    ),
    Heads(
        _ATTENTION,
        "What heads write",
        "How much a head’s output varies with the input, beside the median head of its layer; under 0.01 it is dead.",
        "head-activity",
        "activity",
        2.0,
        relative=True,
    ),
    Lines(
        _STREAM,
        "Size of the residual stream",
        "After each layer: rms over features, and the norm of the first token beside the others’.",
        "residual-norms",
        {"rms": "rms", "peak": "first token’s peak"},
        "rms, ratio",
        log=True,
    ),
    Lines(
        _STREAM,
        "Massive activations",
        "The largest value after each layer, and its ratio to the layer’s median.",
        "massive-activations",
        {"largest": "largest value", "ratio": "ratio to the median"},
        "value, ratio",
        log=True,
        limits=(100.0, 1000.0),
    ),
    Lines(
        _STREAM,
        "Strongest feature",
        "The feature that is largest on all tokens, in units of the stream’s rms.",
        "residual-sinks",
        {"strongest": "strongest feature"},
        "times the rms",
        limits=(6.0,),
    ),
    Lines(
        _STREAM,
        "Effective rank",
        "Directions that the states of one window fill, as a share of those that they could.",
        "representations",
        {"effective_rank": "effective rank"},
        "share",
        log=True,
        limits=(0.02,),
    ),
    Lines(
        _DEPTH,
        "Contribution",
        "Length of what a sublayer adds, beside the stream that it adds it to.",
        "depth-use",
        {f"{name}_contribution": "MLP" if name == "mlp" else name for name in _BOTH},
        "share of the stream",
        log=True,
        limits=(0.05,),
    ),
    Lines(
        _DEPTH,
        "Direction of what is added",
        "Cosine with the stream: 0 writes new features, below erases, above strengthens what is there.",
        "depth-use",
        {f"{name}_cosine": "MLP" if name == "mlp" else name for name in _BOTH},
        "cosine",
        range=(-1.05, 1.05),
    ),
    Lines(
        _DEPTH,
        "Cost of skipping a layer",
        "Rise of the loss when this one layer is left out. No bar: it does not rise.",
        "layer-skipping",
        {"cost": "cost"},
        "nats per token",
        log=True,
        bars=True,
        limits=(0.01,),
    ),
    Influence(
        _DEPTH,
        "Influence of layers on later ones",
        "Largest relative change of what a later layer adds, when an earlier one is skipped.",
    ),
    Lines(
        _DEPTH,
        "Layers that tokens use",
        "Share of tokens whose norm the layer changes noticeably; the rest pass through a void.",
        "voids",
        {"used": "share of tokens"},
        "share of tokens",
        range=(-0.02, 1.05),
    ),
    Lines(
        _DEPTH,
        "Active neurons",
        "Share of the MLP’s neurons that make up its output but for an error of 0.2, and activations that are 0.",
        "activation-sparsity",
        {"activation_ratio": "active", "zeros": "exactly 0"},
        "share",
        range=(-0.02, 1.05),
    ),
    Lines(
        _DEPTH,
        "Tokens alone or mixed",
        "Cosine of a layer’s update with what a map of each token by itself explains, and with the rest.",
        "layer-updates",
        {"tokenwise": "tokens alone", "residual": "mixed"},
        "cosine",
        range=(-0.05, 1.05),
    ),
    Exponents(
        _WEIGHTS,
        "Tail exponents of weight matrices",
        "Well trained matrices lie in the band from 2 to 6; above it, little was learned.",
    ),
    Lines(
        _WEIGHTS,
        "Gradient norms",
        "Of the language-modelling loss, over all parameters of a layer.",
        "gradients",
        {"norm": "gradient norm"},
        "norm",
        log=True,
    ),
)


def plots(diagnoses: Sequence[Diagnosis], names: Sequence[str]) -> list[Plot]:
    """Those for which a model has the numbers; ``names`` stand in the legends of models side by side."""
    drawn = [(spec, spec.draw(diagnoses, names)) for spec in PLOTS]
    return [Plot(spec.group, spec.title, spec.note, figures) for spec, figures in drawn if figures]
