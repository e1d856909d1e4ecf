"""Layer normalization.

    y = γ ⊙ (x − mean(x)) / √(var(x) + ε) + β

with the biased variance over the features of one token. Ba, Kiros, Hinton, 2016, arXiv:1607.06450.
"""

from __future__ import annotations

from torch import nn

from assay.nn.norm import norms


@norms.register("layer-norm")
class LayerNorm(nn.LayerNorm):
    """γ and β start at 1 and 0; ``bias=False`` leaves β out."""

    def __init__(self, hidden_size: int, *, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(hidden_size, eps=eps, bias=bias)
