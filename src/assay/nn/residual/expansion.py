"""The residual expansion: a tower of residual branches as an ensemble of paths, sorted by their length.

    x_n = (1 + λ F_n) ∘ … ∘ (1 + λ F_1) (x) = Σ_j λ^j T_j(x)
    T_0 = x,    T_1 = Σ_k F_k(x),    T_2 = Σ_{i<k} DF_k(x) F_i(x),    …

T_j has one term for each choice of j branches, n over j in all: with λ = 1 the sum grows combinatorially with the
depth n, and λ = 1/n or 1/√n (``branch`` of the residual ``scaled``) hold it. For linear branches it ends at j = n.

Dherin, Munn, 2025, arXiv:2510.03470.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp

from assay.errors import UserError

Branch = Callable[[Tensor], Tensor]


def expansion(
    branches: Sequence[Branch], x: Float[Tensor, "*batch hidden"], order: int
) -> list[Float[Tensor, "*batch hidden"]]:
    """[T_0, .., T_order] at ``x``: T_j = (1/j!) ∂^j x_n / ∂λ^j at λ = 0, by nested forward differentiation.

    Branches must be smooth at ``x``. Time and memory double with each order. Raises ``UserError`` for an order
    below 0.
    """
    if order < 0:
        raise UserError(f"order={order} of a residual expansion; it must be 0 or more")

    def tower(scale: Tensor) -> Tensor:
        state = x
        for branch in branches:
            state = state + scale * branch(state)
        return state

    zero = x.new_zeros(())
    derivatives: list[Branch] = [tower]
    for _ in range(order):
        derivatives.append(_derivative(derivatives[-1]))
    return [derivative(zero) / math.factorial(j) for j, derivative in enumerate(derivatives)]


def _derivative(function: Branch) -> Branch:
    return lambda scale: jvp(function, (scale,), (torch.ones_like(scale),))[1]
