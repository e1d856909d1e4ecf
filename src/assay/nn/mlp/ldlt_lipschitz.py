"""LDLT: a residual block whose Lipschitz constant is at most L, whatever its parameters are.

    y = A x + B w_l + b,    w_0 = x,    w_k = φ(C_k w_{k−1} + b_k)

with φ of slope 0 .. 1. It is L-Lipschitz in the Euclidean norm if the block tridiagonal matrix with one more block in
its corner (rows w_0, w_1 .. w_l; here for one inner layer)

    M = [ L² I − AᵀA       −C_1ᵀ − AᵀB ]
        [ −C_1 − BᵀA       2 I − BᵀB   ]

is positive semidefinite, since L²‖Δx‖² − ‖Δy‖² = ΔwᵀMΔw + 2 Σ_k ⟨Δw_k, C_k Δw_{k−1} − Δw_k⟩, whose sum φ keeps from
being negative. M is so exactly if all pivots of its block LDLᵀ factorisation are, and each pivot asks that one
matrix be a contraction, which any free matrix V gives:

    K(V) = V R⁻¹,    RᵀR = VᵀV + a I  (R upper triangular, a > 0),    ‖K(V)‖ < 1
    A    = L K(V_A)
    C_k  = √2 K(V_k) P_{k−1}⁻¹,    P_k P_kᵀ = D_k⁻¹,    k < l
    B    = √2 U⁻¹ K(V_B),    UᵀU = I + A S Aᵀ,    S = Σ_{k ≤ l−2} γ_k D_k⁻¹ γ_kᵀ
    C_l  = √(2a) R_B⁻ᵀ K(V_l) P_{l−1}⁻¹ − BᵀA γ_{l−1}
    D_0⁻¹ = R_A R_Aᵀ / (a L²),    D_k⁻¹ = (V_k V_kᵀ + a I) / (2a),    γ_0 = I,  γ_k = γ_{k−1} D_{k−1}⁻¹ C_kᵀ

Conversely, all blocks with M positive definite are reached. Inverses of pivots come from the same triangular factors,
so that nothing is inverted that could lose its definiteness to rounding.
Juston, Sreenivas, Nottage, Soylemezoglu, 2025, arXiv:2512.05915.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from assay.nn.mlp import mlps

Activation = Literal["relu", "elu", "tanh"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"relu": F.relu, "elu": F.elu, "tanh": torch.tanh}
"""Elementwise functions whose slope is 0 .. 1 everywhere; GELU's and SiLU's is not."""

SMALLEST = 1e-4
"""Of a: keeps the norms of contractions away from 1."""

ROUNDING = 8
"""Times the precision and ‖V‖²: what a has at least, so that VᵀV + aI is definite after rounding, too."""


def contraction(
    free: Float[Tensor, "rows columns"], a: Float[Tensor, ""]
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "columns columns"]]:
    """K(V) = V R⁻¹ and R. Singular values s of V become s / √(s² + a)."""
    factor = _cholesky(_gram(free.mT, a), upper=True)
    return torch.linalg.solve_triangular(factor, free, upper=True, left=False), factor


class Free(nn.Linear):
    """A free matrix V, with the bias of its layer. It is read, not applied."""


class LDLTBlock(nn.Module):
    """``in_features`` → ``widths`` → ``out_features`` beside a linear skip, ``lipschitz``-Lipschitz by construction.

    Its parameters are the free matrices V; the maps A, B and C follow from them at every forward (``maps``).
    Dropout, batch norm or a further skip around the block are not covered.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        widths: Sequence[int],
        *,
        lipschitz: float = 1.0,
        activation: Activation = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.lipschitz = lipschitz
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[activation]
        self.skip = Free(in_features, out_features, bias=bias)
        sizes = zip([in_features, *widths], widths, strict=False)
        self.inner = nn.ModuleList(Free(before, after, bias=bias) for before, after in sizes)
        self.outer = Free(widths[-1], out_features, bias=False)
        self.log_a = nn.Parameter(torch.zeros(len(widths) + 2))

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        skip, inner, outer = self.maps()
        w = x
        for weight, layer in zip(inner, self.inner, strict=True):
            w = self.activation(F.linear(w, weight.to(x.dtype), cast(Free, layer).bias))
        return F.linear(x, skip.to(x.dtype), self.skip.bias) + F.linear(w, outer.to(x.dtype))

    def maps(self) -> tuple[Float[Tensor, "out in"], list[Tensor], Float[Tensor, "out last"]]:
        """A, [C_1 .. C_l] and B, computed in float32 or more."""
        device = self.log_a.device.type
        if not torch.amp.is_autocast_available(device):
            return self._maps()
        with torch.autocast(device, enabled=False):
            return self._maps()

    def _maps(self) -> tuple[Tensor, list[Tensor], Tensor]:
        wide = torch.promote_types(self.log_a.dtype, torch.float32)
        free = [layer.weight.to(wide) for layer in (self.skip, *self.inner, self.outer)]
        free_skip, *free_inner, free_outer = free
        rounding = ROUNDING * torch.finfo(wide).eps
        a_skip, *a_inner, a_outer = (
            learned + SMALLEST + rounding * v.square().sum()
            for learned, v in zip(self.log_a.to(wide).exp(), free, strict=True)
        )

        skip, factor = contraction(free_skip, a_skip)
        skip = self.lipschitz * skip
        root = factor / (self.lipschitz * a_skip.sqrt())
        gamma = torch.eye(skip.shape[1], dtype=wide, device=skip.device)
        spread = torch.eye(skip.shape[0], dtype=wide, device=skip.device)
        inner: list[Tensor] = []
        for k, (v, a) in enumerate(zip(free_inner[:-1], a_inner[:-1], strict=True)):
            contracted, _ = contraction(v, a)
            inner.append(math.sqrt(2) * _divided(contracted, root, upper=k == 0))
            reached = gamma @ root
            spread = spread + (skip @ reached) @ (skip @ reached).mT
            gamma = reached @ (inner[-1] @ root).mT
            root = _cholesky(_gram(v, a)) / (2 * a).sqrt()

        outer, factor = contraction(free_outer, a_outer)
        spread_root = _cholesky(spread, upper=True)
        outer = math.sqrt(2) * torch.linalg.solve_triangular(spread_root, outer, upper=True)
        contracted, _ = contraction(free_inner[-1], a_inner[-1])
        last = _divided(contracted, root, upper=not inner)
        last = (2 * a_outer).sqrt() * torch.linalg.solve_triangular(factor.mT, last, upper=False)
        inner.append(last - outer.mT @ skip @ gamma)
        return skip, inner, outer


def _gram(free: Float[Tensor, "rows columns"], a: Float[Tensor, ""]) -> Float[Tensor, "rows rows"]:
    return free @ free.mT + a * torch.eye(free.shape[0], dtype=free.dtype, device=free.device)


def _cholesky(x: Float[Tensor, "n n"], *, upper: bool = False) -> Float[Tensor, "n n"]:
    """Without a check, which would stop a run whose weights are not numbers any more before its loss tells."""
    return torch.linalg.cholesky_ex(x, upper=upper).L


def _divided(x: Float[Tensor, "m n"], root: Float[Tensor, "n n"], *, upper: bool) -> Float[Tensor, "m n"]:
    """x P⁻¹ for a triangular P."""
    return torch.linalg.solve_triangular(root, x, upper=upper, left=False)


@mlps.register("ldlt-lipschitz")
class LDLTLipschitz(LDLTBlock):
    """The block as the MLP of a layer, with ``num_layers`` inner layers of the intermediate size.

    The certificate is that of the branch, x ↦ MLP(x): the stream around it adds its own skip, so that a sublayer
    x + MLP(norm(x)) is (1 + ``lipschitz`` · that of the norm)-Lipschitz.
    """

    expansion = 3.5

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        lipschitz: Annotated[float, Field(gt=0)] = 1.0,
        num_layers: Annotated[int, Field(gt=0)] = 1,
        activation: Activation = "relu",
        bias: bool = False,
    ) -> None:
        widths = [intermediate_size] * num_layers
        super().__init__(hidden_size, hidden_size, widths, lipschitz=lipschitz, activation=activation, bias=bias)
