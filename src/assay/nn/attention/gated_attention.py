"""Gated attention: what attention computes at one place is multiplied by a gate, a function of the layer's input.

    Y ← Y ⊙ σ(X W_g)

``position`` "attention" is the heads' results before the output projection, which the paper found to be the best
(its G1); "value" (G2), "key" (G3) and "query" (G4) are those projections, before norms and rotation; "output" (G5)
is the layer's output. The gate of a token sees the same (normed) input as its query. Drawn like every other weight,
sigmoid gates start near ½.

    granularity   "elementwise": a gate per feature of a head; "headwise": one per head
    shared        all heads have the same gates
    activation    "sigmoid"; "silu"; "ns-sigmoid", which cannot close: ½ + ½ σ(z)
    form          "multiplicative"; "additive": Y ← Y + σ(X W_g)

Qiu et al., 2025, arXiv:2505.06708.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import UserError
from assay.nn.attention.softmax import Place, SoftmaxAttention
from assay.nn.kernels import fused
from assay.nn.mixer import mixers


@mixers.register("gated-attention")
class GatedAttention(SoftmaxAttention):
    """Raises ``UserError`` for gates by head, or shared by heads, at the layer's output, which has no heads."""

    input_maps = (*SoftmaxAttention.input_maps, "gate_projection")

    def __init__(
        self,
        *context: Any,
        position: Place = "attention",
        granularity: Literal["elementwise", "headwise"] = "elementwise",
        shared: bool = False,
        activation: Literal["sigmoid", "silu", "ns-sigmoid"] = "sigmoid",
        form: Literal["multiplicative", "additive"] = "multiplicative",
        **options: Any,
    ) -> None:
        super().__init__(*context, **options)
        if position == "output" and (shared or granularity == "headwise"):
            raise UserError(
                "gated-attention: the layer's output has no heads; with position='output' leave granularity "
                "'elementwise' and shared false"
            )
        self.position, self.activation, self.form = position, activation, form
        heads = {"key": self.num_kv_heads, "value": self.num_kv_heads, "output": 1}.get(position, self.num_heads)
        self.size = self.hidden_size if position == "output" else self.head_dim
        self.gates_per_head = self.size if granularity == "elementwise" else 1
        self.gate_projection = nn.Linear(
            self.hidden_size, (1 if shared else heads) * self.gates_per_head, bias=self.query.bias is not None
        )

    def gate(
        self, place: Place, y: Float[Tensor, "batch time features"], x: Float[Tensor, "batch time hidden"]
    ) -> Float[Tensor, "batch time features"]:
        if place != self.position:
            return y
        heads = y.unflatten(-1, (-1, self.size))
        z = self.gate_projection(x).unflatten(-1, (-1, self.gates_per_head))
        if (self.activation, self.form) == ("sigmoid", "multiplicative"):
            return sigmoid_gate(heads, z).flatten(-2)
        gates = ACTIVATIONS[self.activation](z)
        return (heads + gates if self.form == "additive" else heads * gates).flatten(-2)


@fused
def sigmoid_gate(y: Float[Tensor, "*batch size"], z: Float[Tensor, "*#batch gates"]) -> Float[Tensor, "*batch size"]:
    """y ⊙ σ(z), with a gate for each of ``size`` features or one for all of them."""
    return y * z.sigmoid()


def ns_sigmoid(z: Tensor) -> Tensor:
    """½ + ½ σ(z): a gate that cannot close."""
    return 0.5 + 0.5 * z.sigmoid()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "ns-sigmoid": ns_sigmoid,
}
