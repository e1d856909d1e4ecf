"""Poincaré skip connection: the branch ⊕ the stream, f ⊕ x, in tangent coordinates log₀(exp₀(f) ⊕ exp₀(x)).

van Spengler, Berkhout, Mettes, 2023, arXiv:2303.14027.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from assay.nn.residual.poincare.explicit import exp0, log0, mobius_add


def poincare_skip(
    branch: Float[Tensor, "batch channels *size"], x: Float[Tensor, "batch channels *size"], c: float
) -> Float[Tensor, "batch channels *size"]:
    """``x``, joined to the ``branch`` from its right; the sum is not commutative."""
    joined = mobius_add(exp0(branch.movedim(1, -1), c), exp0(x.movedim(1, -1), c), c)
    return log0(joined, c).movedim(-1, 1)
