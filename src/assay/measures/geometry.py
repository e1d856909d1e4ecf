"""Geometry of a layer's update: what a map of each token by itself explains of it, and how the rest is oriented.

    u = y − x          update of a token, from its state x before a layer to y after it
    t = (A − 1) x      tokenwise part: A is one map for all tokens, or one fitted around each
    r = u − t          residual

    alignment          cos(u, t) and cos(u, r); of states cos(y, A x) and cos(y, r)
    projection         ‖Vᵀu‖² / ‖u‖² and ‖Vᵀr‖² / ‖r‖², V the leading directions of t over all tokens
    error              ‖r‖ / ‖u‖ and ‖r‖ / ‖y‖

A is the map of a class with the least Σ ‖y − A x‖² + λ ‖A − 1‖². Classes: ``diagonal``; ``orthogonal``; ``low-rank``,
the identity and a matrix of rank q. ``TokenwiseFit`` finds one A for all tokens, and the figures of all their vectors
joined end to end, from Σ x xᵀ, Σ u xᵀ and Σ u uᵀ. ``UpdateGeometry`` averages the figures of single tokens, for any
map. ``local_parts`` fits A around each token, as the paper does, and needs the tokens side by side.

In a fit without λ, diagonal or of low rank, t and r are orthogonal over all tokens, whatever the layer does: the
joint cosines then say no more than the error, cos²(u, t) = 1 − ‖r‖² / ‖u‖². Those of single tokens, and projections,
do. A residual below 10⁻⁶ of the update counts as none.

Yoo, 2026, arXiv:2604.02459. Reduced rank: Izenman, 1975. Here λ draws towards the identity, and ranks are counted
from it, so that a residual stream that nothing is added to has no residual.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from assay.errors import UserError

Kind = Literal["diagonal", "orthogonal", "low-rank"]
States = Float[Tensor, "*batch hidden"]
Square = Float[Tensor, "hidden hidden"]


@dataclasses.dataclass(frozen=True)
class TokenwiseMap:
    """t = ``matrix`` x with A − 1 as ``matrix``; ``directions`` are the leading ones of t, as columns.

    There are fewer directions than were asked for if t has no more.
    """

    matrix: Square
    directions: Float[Tensor, "hidden top"]

    def __call__(self, before: States) -> States:
        """t, in the type of ``before``."""
        return (before.to(self.matrix) @ self.matrix.T).to(before)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Figures of an update; NaN where one of their vectors is 0.

    Attributes:
        update_tokenwise: cos(u, t).
        update_residual: cos(u, r).
        state_tokenwise: cos(y, A x); near 1 for any small update.
        state_residual: cos(y, r).
        projected_update: the share of ‖u‖² along the leading directions of t.
        projected_residual: the share of ‖r‖² along them.
        update_error: ‖r‖ / ‖u‖.
        state_error: ‖r‖ / ‖y‖.
    """

    update_tokenwise: float
    update_residual: float
    state_tokenwise: float
    state_residual: float
    projected_update: float
    projected_residual: float
    update_error: float
    state_error: float


class TokenwiseFit:
    """One map of a class for all tokens. ``rank`` is that of a ``low-rank`` one, ``top`` how many directions lead.

    Keeps three matrices of hidden × hidden numbers in float64, whatever the number of tokens.
    """

    def __init__(self, kind: Kind = "diagonal", *, rank: int = 16, top: int = 10) -> None:
        self.kind, self.rank, self.top = kind, rank, top
        self._sums: tuple[Square, Square, Square] | None = None

    def update(self, before: States, after: States) -> None:
        """Raises ``UserError`` for shapes that differ, or a width that earlier states did not have."""
        x, y = _tokens(before, after)
        u = y - x
        new = (x.T @ x, u.T @ x, u.T @ u)
        if self._sums is None:
            self._sums = new
        elif len(self._sums[0]) != x.shape[1]:
            raise UserError(f"states of {x.shape[1]} dimensions follow some of {len(self._sums[0])}; keep one width")
        else:
            for total, part in zip(self._sums, new, strict=True):
                total += part

    def result(self) -> tuple[TokenwiseMap, Geometry]:
        """The map, and the figures of all tokens' vectors end to end. Raises ``UserError`` before any update."""
        if self._sums is None:
            raise UserError("no states were given; a fit needs at least one batch of them")
        xx, ux, uu = self._sums
        b = best_map(xx, ux, self.kind, rank=self.rank)
        tx, tu = b @ xx, b @ ux.T
        tt = tx @ b.T
        sizes, axes = torch.linalg.eigh((tt + tt.T) / 2)
        directions = axes[:, sizes > 1e-12 * sizes[-1].clamp(min=0)].flip(-1)[:, : self.top]
        rr = uu - tu - tu.T + tt
        figures = _figures(
            *(gram.trace() for gram in (xx, ux, uu, tx, tu, tt)),
            *((directions * (gram @ directions)).sum() for gram in (uu, rr)),
        )
        return TokenwiseMap(b, directions), Geometry(**{name: value.item() for name, value in figures.items()})


class UpdateGeometry:
    """Means over tokens of the figures of each, for a given map."""

    def __init__(self, tokenwise: TokenwiseMap) -> None:
        self.tokenwise = tokenwise
        names = [field.name for field in dataclasses.fields(Geometry)]
        self._sums, self._counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)

    def update(self, before: States, after: States) -> None:
        """Raises ``UserError`` for shapes that differ."""
        x, y = _tokens(before, after)
        for name, value in token_figures(x, y, self.tokenwise(x), self.tokenwise.directions).items():
            defined = value[value.isfinite()]
            self._sums[name] += defined.sum().item()
            self._counts[name] += len(defined)

    def result(self) -> Geometry:
        """Of each figure, the mean over the tokens that have it."""
        means = {name: self._sums[name] / count if count else float("nan") for name, count in self._counts.items()}
        return Geometry(**means)


def token_figures(
    before: States, after: States, tokenwise: States, directions: Float[Tensor, "hidden top"]
) -> dict[str, Float[Tensor, " tokens"]]:
    """The figures of ``Geometry`` for each token by itself, in float64, from x, y, t and the leading directions of t.

    Raises ``UserError`` for shapes that differ.
    """
    x, y = _tokens(before, after)
    t, _ = _tokens(tokenwise, after)
    u, v = y - x, directions.to(y)
    pairs = (x, x), (u, x), (u, u), (t, x), (t, u), (t, t), (u @ v, u @ v), ((u - t) @ v, (u - t) @ v)
    return _figures(*((one * other).sum(-1) for one, other in pairs))


def best_map(xx: Square, ux: Square, kind: Kind, *, rank: int = 16, ridge: float = 0.0) -> Square:
    """A − 1 for the A of the class with the least Σ ‖y − A x‖² + ``ridge`` ‖A − 1‖², given Σ x xᵀ and Σ u xᵀ.

    Raises ``UserError`` for an unknown class, or a rank below 1.
    """
    eye = torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
    drawn = xx + ridge * eye
    if kind == "diagonal":
        return diagonal_map(xx.diagonal(), ux.diagonal(), ridge).diag()
    if kind == "orthogonal":
        left, _, right = torch.linalg.svd(ux + drawn)
        return left @ right - eye
    if kind != "low-rank":
        raise UserError(f"{kind!r} is no class of maps; known: diagonal, orthogonal, low-rank")
    if rank < 1:
        raise UserError(f"rank={rank} leaves no map; it must be at least 1")
    full = ux @ torch.linalg.pinv(drawn, hermitian=True)
    fitted = full @ ux.T
    leading = torch.linalg.eigh((fitted + fitted.T) / 2).eigenvectors[:, -rank:]
    return leading @ (leading.T @ full)


def diagonal_map(
    xx: Float[Tensor, "*batch hidden"], ux: Float[Tensor, "*batch hidden"], ridge: float = 0.0
) -> Float[Tensor, "*batch hidden"]:
    """Σ u_d x_d / (Σ x_d² + ``ridge``), 0 for a dimension that is never used."""
    return torch.where(xx > 0, ux / (xx + ridge).clamp(min=torch.finfo(xx.dtype).tiny), 0)


def local_parts(
    before: Float[Tensor, "tokens hidden"],
    after: Float[Tensor, "tokens hidden"],
    *,
    kind: Kind = "diagonal",
    neighbours: int = 32,
    rank: int = 16,
    ridge: float = 1e-3,
    sequence: Int[Tensor, " tokens"] | None = None,
) -> Float[Tensor, "tokens hidden"]:
    """t of each token, in float64, by the map that fits its nearest ``neighbours`` in ``before`` best.

    Neither the token itself counts nor, with ``sequence``, others of the sequence that it is from. λ is ``ridge``
    times the mean of ‖x‖². A class other than ``diagonal`` costs hidden³ steps for each token. A few dimensions with
    massive activations decide on who is near: leave such tokens out. Raises ``UserError`` for shapes that differ, or
    fewer other tokens than ``neighbours``.
    """
    x, y = _tokens(before, after)
    u = y - x
    strength = ridge * x.square().sum(-1).mean().item()
    parts = torch.empty_like(u)
    for index, token in enumerate(x):
        distance = (x - token).square().sum(-1)
        distance[index if sequence is None else sequence == sequence[index]] = torch.inf
        if distance.isfinite().sum() < neighbours:
            raise UserError(f"a token has fewer than {neighbours} others to be fitted on; give more tokens")
        near = distance.topk(neighbours, largest=False).indices
        if kind == "diagonal":
            parts[index] = token * diagonal_map(x[near].square().sum(0), (u[near] * x[near]).sum(0), strength)
        else:
            xx, ux = x[near].T @ x[near], u[near].T @ x[near]
            parts[index] = best_map(xx, ux, kind, rank=rank, ridge=strength) @ token
    return parts


def rank_correlation(
    error: Float[Tensor, " n"], perturbation: Float[Tensor, " n"], given: Float[Tensor, " n"] | None = None
) -> float:
    """Spearman's correlation; with ``given`` the partial one, of what ``given`` does not explain of either's ranks.

    NaN where nothing varies. Raises ``UserError`` for fewer than 3 values.
    """
    if len(error) < 3:
        raise UserError(f"{len(error)} values have no rank correlation; give at least 3")
    ranks = [rankdata(values.detach().cpu().numpy()) for values in (error, perturbation)]
    if given is not None:
        design = np.stack([np.ones(len(given)), rankdata(given.detach().cpu().numpy())], axis=1)
        ranks = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in ranks]
    one, other = (values - values.mean() for values in ranks)
    size = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / size) if size > 1e-9 * len(error) else float("nan")


def _tokens(before: States, after: States) -> tuple[Float[Tensor, "tokens hidden"], Float[Tensor, "tokens hidden"]]:
    if before.shape != after.shape:
        raise UserError(f"states of shape {list(before.shape)} and {list(after.shape)} do not belong together")
    return before.flatten(0, -2).double(), after.flatten(0, -2).double()


def _figures(
    xx: Tensor, ux: Tensor, uu: Tensor, tx: Tensor, tu: Tensor, tt: Tensor, along_u: Tensor, along_r: Tensor
) -> dict[str, Tensor]:
    """From inner products of x, u and t, and from ‖Vᵀu‖² and ‖Vᵀr‖²."""
    rr = uu - 2 * tu + tt
    rr = torch.where(rr > 1e-12 * uu, rr, 0)
    yy, fitted = xx + 2 * ux + uu, xx + 2 * tx + tt
    y_fitted = xx + tx + ux + tu
    figures = {
        "update_tokenwise": tu / (uu * tt).sqrt(),
        "update_residual": (uu - tu) / (uu * rr).sqrt(),
        "state_tokenwise": y_fitted / (yy * fitted).sqrt(),
        "state_residual": (yy - y_fitted) / (yy * rr).sqrt(),
        "projected_update": along_u / uu,
        "projected_residual": along_r / rr,
        "update_error": (rr / uu).sqrt(),
        "state_error": (rr / yy).sqrt(),
    }
    return {name: torch.where(value.isfinite(), value, torch.nan) for name, value in figures.items()}
