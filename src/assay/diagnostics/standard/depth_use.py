"""How much each sublayer adds to the residual stream, and in which direction.

    contribution   ‖a_l‖ / ‖h_l‖,   ‖m_l‖ / ‖h_l + a_l‖,   ‖a_l + m_l‖ / ‖h_l‖
    cosine         cos(a_l, h_l),   cos(m_l, h_l + a_l),   cos(a_l + m_l, h_l)

of attention a_l and MLP m_l, as means over the tokens but the first. A cosine of 0 writes new features, a negative
one erases, a positive one strengthens what is there. Csordás, Manning, Potts, 2025, arXiv:2505.13898.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.events import EPSILON, LayerStep
from assay.diagnostics.means import Means
from assay.diagnostics.subject import Subject

IDLE = 0.05
SHARE = 0.25


@diagnostics.register("depth-use")
class DepthUse(Diagnostic):
    """``contribution`` (mean of the layers), ``late_over_early`` (mean contribution of the second half of the layers
    beside the first), ``idle_layers`` (share of layers that contribute under 5 %)."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.means = Means()

    def on_layer(self, step: LayerStep) -> None:
        self._add("layer", step.layer, step.update, step.before)
        if step.attention is not None and step.mlp is not None:
            self._add("attention", step.layer, step.attention, step.before)
            self._add("mlp", step.layer, step.mlp, step.before + step.attention)

    def _add(self, name: str, layer: int, added: Tensor, stream: Tensor) -> None:
        added, stream = added[:, 1:], stream[:, 1:]
        share = added.norm(dim=-1) / stream.norm(dim=-1).clamp(min=EPSILON)
        self.means.add(f"{name} contribution", layer, share.flatten())
        self.means.add(f"{name} cosine", layer, F.cosine_similarity(added, stream, dim=-1).flatten())

    def result(self) -> Result:
        arrays = {
            f"{name}_{what}": self.means.numbers(f"{name} {what}")
            for name in ("layer", "attention", "mlp")
            for what in ("contribution", "cosine")
            if f"{name} {what}" in self.means
        }
        shares = arrays["layer_contribution"]
        half = max(1, len(shares) // 2)
        early, late = sum(shares[:half]) / half, sum(shares[-half:]) / half
        idle = [{"layer": i, "contribution": round(x, 4)} for i, x in enumerate(shares) if x < IDLE]
        idle.sort(key=lambda place: place["contribution"])
        found = []
        if len(idle) >= SHARE * len(shares):
            found.append(
                Finding(
                    "depth-use",
                    "idle-depth",
                    f"{len(idle)} of {len(shares)} layers change the residual stream by less than {IDLE:.0%}",
                    len(idle) / len(shares),
                    SHARE,
                    "chosen here: a quarter of the layers",
                    "these layers could be removed with little loss, or never learned to do anything",
                    tuple(idle),
                    len(idle) / len(shares) / SHARE,
                )
            )
        scalars = {
            "contribution": sum(shares) / len(shares),
            "late_over_early": late / max(early, EPSILON),
            "idle_layers": len(idle) / len(shares),
        }
        return Result(scalars, arrays, found)
