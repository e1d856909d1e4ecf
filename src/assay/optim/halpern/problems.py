"""Finite-sum monotone inclusions: any saddle point by autograd, games of a matrix, and least squares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad

from assay.errors import UserError
from assay.optim.halpern import FiniteSum


def saddle(loss: Callable[[Tensor, Tensor, Tensor | None], Tensor], count: int, minimized: int) -> FiniteSum:
    """min over x, max over y of ``loss(x, y, S)``, the mean over the terms S (or all): F = (∇_x loss, −∇_y loss).

    u holds x, its first ``minimized`` entries, and then y, which may be empty.
    """
    gradients = grad(loss, argnums=(0, 1))

    def mean(u: Float[Tensor, " d"], terms: Int[Tensor, " batch"] | None) -> Float[Tensor, " d"]:
        x, y = gradients(u[:minimized], u[minimized:], terms)
        return torch.cat([x, -y])

    return FiniteSum(count, mean)


def bilinear_game(
    matrix: Float[Tensor, "n n"], b: Float[Tensor, " n"], c: Float[Tensor, " n"]
) -> tuple[FiniteSum, float]:
    """min over x, max over y of yᵀAx − bᵀy + cᵀx, by row i and column i of A, and its constant L on average.

    u is x and then y. The solution is x = A⁻¹b, y = −A⁻ᵀc. L is √n times the longest row or column.
    """
    n = len(matrix)
    if not matrix.shape == (n, n) or not b.shape == c.shape == (n,):
        raise UserError(
            f"a matrix of shape {tuple(matrix.shape)} with b, c of {tuple(b.shape)}, {tuple(c.shape)}; "
            "they should be (n, n) and (n,)"
        )

    def mean(u: Float[Tensor, " d"], terms: Int[Tensor, " batch"] | None) -> Float[Tensor, " d"]:
        x, y = u[:n], u[n:]
        if terms is None:
            return torch.cat([y @ matrix + c, b - matrix @ x])
        scale = n / len(terms)
        return torch.cat([scale * (y[terms] @ matrix[terms]) + c, b - scale * (matrix[:, terms] @ x[terms])])

    longest = max(matrix.norm(dim=0).max().item(), matrix.norm(dim=1).max().item())
    return FiniteSum(n, mean), n**0.5 * longest


def matrix_game(matrix: Float[Tensor, "n n"]) -> tuple[FiniteSum, float]:
    """min over x, max over y of yᵀAx, where x and y are probabilities: both players' mixed strategies."""
    n = len(matrix)
    game, lipschitz = bilinear_game(matrix, matrix.new_zeros(n), matrix.new_zeros(n))
    return FiniteSum(n, game.mean, lambda u, c: to_simplex(u.view(2, n)).flatten()), lipschitz


def to_simplex(points: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
    """The nearest points with entries of at least 0 and of sum 1."""
    ordered = points.sort(descending=True).values
    counts = torch.arange(1, points.shape[-1] + 1, device=points.device)
    excess = (ordered.cumsum(-1) - 1) / counts
    kept = (ordered > excess).sum(-1, keepdim=True)
    return (points - excess.gather(-1, kept - 1)).clamp(min=0)


def least_squares(inputs: Float[Tensor, "n d"], targets: Float[Tensor, " n"]) -> tuple[FiniteSum, float]:
    """F_i(u) = a_i (a_iᵀu − b_i), and L: the terms are cocoercive on average with 1 / L = 1 / max ‖a_i‖²."""
    if inputs.ndim != 2 or targets.shape != inputs.shape[:1]:
        raise UserError(
            f"inputs of shape {tuple(inputs.shape)} with targets of shape {tuple(targets.shape)}; "
            "they should be (n, d) and (n,)"
        )

    def mean(u: Float[Tensor, " d"], terms: Int[Tensor, " batch"] | None) -> Float[Tensor, " d"]:
        a, b = (inputs, targets) if terms is None else (inputs[terms], targets[terms])
        return (a @ u - b) @ a / len(b)

    return FiniteSum(len(targets), mean), inputs.square().sum(1).max().item()
