"""Linear maps with scale vectors: a gain of their own on their input, on both sides, or around a norm.

    input          y = W (g_in ⊙ x)                       for the maps that read the layer's input
    both           y = g_out ⊙ W (g_in ⊙ x)               for all maps: W ⊙ (g_out g_inᵀ)
    both-normed    y = g_out ⊙ N(W (g_in ⊙ x))            for all maps, N(z) = z / rms(z)

A bias is added last. ``input`` gives queries, keys, values, gates and so on heterogeneous gains on one normed input
(HG), ``both`` is dual placement (DP), ``both-normed`` dual placement with a norm between (DNP). All gains start at 1.
Gains on the input fold into W, and without the norm so do those on the output.

Wang et al., 2026, arXiv:2605.26895.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import UserError
from assay.nn.linear import LinearPlace, linears
from assay.nn.norm.rms_norm import rms_normalize
from assay.nn.scale_vector import Form, ScaleVector


class ScaledLinear(nn.Linear):
    """The weight and bias of ``linear`` with ``input_gain``, and with ``output_gain`` and ``normed`` where given."""

    def __init__(
        self,
        linear: nn.Linear,
        input_gain: ScaleVector,
        output_gain: ScaleVector | None = None,
        *,
        normed: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.input_gain, self.output_gain = input_gain, output_gain
        self.normed, self.eps = normed, eps

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        y = F.linear(self.input_gain() * x, self.weight)
        if self.normed:
            y = rms_normalize(y, self.eps).to(y.dtype)
        if self.output_gain is not None:
            y = self.output_gain() * y
        return y if self.bias is None else y + self.bias


@linears.register("scale-vectors")
def scale_vectors(
    linear: nn.Linear,
    place: LinearPlace,
    *,
    gains: Literal["input", "both", "both-normed"] = "both-normed",
    form: Form = "vector",
    decay: Literal["input", "all", "none"] = "input",
    eps: float = 1e-6,
) -> nn.Linear:
    """``decay`` says which gains are decayed: those on inputs, all or none.

    Raises ``UserError`` if ``gains`` is ``input`` and the mixer or MLP does not say which of its maps read its input.
    """
    if gains == "input" and place == "unknown":
        raise UserError(
            "linear 'scale-vectors': this mixer or MLP does not list its input_maps, which gains='input' needs; "
            "gains='both' puts gains around every map"
        )
    if gains == "input" and place == "inner":
        return linear
    input_gain = ScaleVector(linear.in_features, form, decay=decay != "none")
    if gains == "input":
        return ScaledLinear(linear, input_gain)
    output_gain = ScaleVector(linear.out_features, form, decay=decay == "all")
    return ScaledLinear(linear, input_gain, output_gain, normed=gains == "both-normed", eps=eps)
