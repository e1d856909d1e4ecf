"""Attention sinks, and the values that drain there.

    share of key j in head h     α_j = mean over the queries i ≥ j of w_ij
    value drain                  ‖v_0‖ / mean over j ≥ 1 of ‖v_j‖

A head sinks where α_j ≥ 0.3 for one key, mostly the first; the value there is then small, so that the head as good as
does nothing. Xiao et al., 2023, arXiv:2309.17453; Gu et al., 2024, arXiv:2410.10781, from whom the 0.3 is; value
drains: Guo et al., 2024, arXiv:2410.13835.
"""

from __future__ import annotations

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.events import Attention
from assay.diagnostics.means import Means
from assay.diagnostics.subject import Subject

SINK = 0.3


@diagnostics.register("attention-sinks")
class AttentionSinks(Diagnostic):
    """``first_token`` (mean share of the first token over heads), ``sink_heads`` (share of heads that sink),
    ``value_drain`` (mean over heads)."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.means = Means()

    def on_attention(self, attention: Attention) -> None:
        keys = max(1, attention.received.shape[-1] // 2)  # later keys are seen by few queries
        self.means.add("received", attention.layer, attention.received[..., :keys])
        drain = attention.value_norm[..., 0] / attention.value_norm[..., 1:].mean(-1).clamp(min=1e-12)
        self.means.add("drain", attention.layer, drain)

    def result(self) -> Result | None:
        if "received" not in self.means:
            return None
        layers = self.means.layers("received")
        received = self.means.by_layer("received")
        first = [shares[:, 0] for shares in received]
        drains = self.means.by_layer("drain")
        heads = [
            {"layer": layer, "head": head, "token": int(row.argmax()), "share": round(row.max().item(), 4)}
            for layer, shares in zip(layers, received, strict=True)
            for head, row in enumerate(shares)
            if row.max() >= SINK
        ]
        heads.sort(key=lambda head: -head["share"])
        total = sum(len(shares) for shares in received)
        mean = sum(shares.sum().item() for shares in first) / total
        drain = sum(d.mean().item() for d in drains) / len(drains)
        found = []
        if mean >= SINK:
            found.append(
                Finding(
                    "attention-sinks",
                    "attention-sink",
                    f"heads give the first token {mean:.0%} of their attention on average; {len(heads)} of {total} "
                    f"heads are sinks, and values of the first token are {drain:.2g} times as long as the others'",
                    mean,
                    SINK,
                    "the share from which Gu et al., 2024, arXiv:2410.10781, call a head a sink",
                    "these heads mostly do nothing; the first token must stay in the cache, and the activations that "
                    "go with it make quantization harder",
                    tuple(heads),
                    mean / SINK,
                )
            )
        return Result(
            {"first_token": mean, "sink_heads": len(heads) / total, "value_drain": drain},
            {"first_token": [shares.tolist() for shares in first], "value_drain": [d.tolist() for d in drains]},
            found,
        )
