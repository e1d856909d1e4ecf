"""Spectra: what the singular values s₁ ≥ … ≥ s_n of a matrix say of it.

    nuclear norm      Σ sᵢ
    effective rank    exp(−Σ pᵢ ln pᵢ), pᵢ = sᵢ / Σ sⱼ
    stable rank       Σ sᵢ² / s₁²
    low-rankness      min{k : Σ_{i≤k} sᵢ² ≥ energy · Σ sᵢ²} / n
    power-law tail    density ∝ λ^−α of the eigenvalues λᵢ = sᵢ² from λ_min on
    outliers          sᵢ above the edge σ(√rows + √columns) of a matrix of independent entries

and, for token states H of one text, X = the rows of H less their mean, each at unit length:

    matrix entropy        −Σ pᵢ ln pᵢ / ln hidden, pᵢ = sᵢ(X)² / Σ sⱼ(X)²
    matrix nuclear norm   (sum of the min(time, hidden) largest column norms of X) / time

Roy, Vetterli, 2007 (effective rank); Clauset, Shalizi, Newman, 2007, arXiv:0706.1062 (tails); Hill, 1975;
Martin, Mahoney, 2018, arXiv:1810.01075 (tails and edges of weights); Gavish, Donoho, 2013, arXiv:1305.5870 (σ from
the median); Johnstone, 2001 (how far noise passes the edge); Li et al., 2024, arXiv:2410.10672 (token states).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor

from assay.errors import UserError

Values = Float[Tensor, "*batch n"]
States = Float[Tensor, "*batch time hidden"]

_TRACY_WIDOM_99 = 2.0234
_AT_ONCE = 2**22


def singular_values(matrix: Float[Tensor, "*batch rows columns"]) -> Values:
    """Of each matrix, largest first, in float32 at least. Raises ``UserError`` for what is no finite matrix."""
    if matrix.ndim < 2 or 0 in matrix.shape[-2:]:
        raise UserError(f"a tensor of shape {list(matrix.shape)} has no singular values; give one of 2 dimensions")
    if not matrix.isfinite().all():
        raise UserError("the matrix has entries that are not finite; singular values need numbers")
    return torch.linalg.svdvals(matrix.to(torch.promote_types(matrix.dtype, torch.float32)))


def nuclear_norm(singular: Values) -> Float[Tensor, "*batch"]:
    """Σ sᵢ."""
    return singular.sum(-1)


def effective_rank(singular: Values) -> Float[Tensor, "*batch"]:
    """exp of the entropy of s / Σ s: n for n equal values, 1 for a single one, NaN for a zero matrix."""
    return torch.special.entr(singular / singular.sum(-1, keepdim=True)).sum(-1).exp()


def stable_rank(singular: Values) -> Float[Tensor, "*batch"]:
    """‖W‖_F² / ‖W‖₂², at most the rank; NaN for a zero matrix."""
    return (singular / singular.amax(-1, keepdim=True)).square().sum(-1)


def low_rankness(singular: Values, energy: float = 0.9) -> Float[Tensor, "*batch"]:
    """The share of the singular values, largest first, whose squares make up ``energy`` of the sum of squares.

    Raises ``UserError`` unless 0 < ``energy`` ≤ 1.
    """
    if not 0 < energy <= 1:
        raise UserError(f"energy={energy} is not a share; it must be above 0 and at most 1")
    squares = singular.double().square().sort(-1, descending=True).values.cumsum(-1)
    short = squares < energy * squares[..., -1:] * (1 - 1e-12)
    return ((short.sum(-1) + 1) / singular.shape[-1]).to(singular.dtype)


@dataclass(frozen=True)
class PowerLaw:
    """A fitted tail: density ∝ λ^−``alpha`` from ``minimum`` on, where ``count`` eigenvalues lie.

    ``distance`` is the Kolmogorov–Smirnov distance of the fit; the standard error of ``alpha`` is
    (``alpha`` − 1) / √``count``.
    """

    alpha: float
    minimum: float
    distance: float
    count: int


def power_law(eigenvalues: Float[Tensor, " n"]) -> PowerLaw:
    """The likeliest exponent of the tail, α = 1 + m / Σ ln(λᵢ / λ_min), with the λ_min at which it fits best.

    Every eigenvalue but the largest is tried as λ_min; the best has the smallest distance maxⱼ |F(λⱼ) − j/m|,
    F(λ) = 1 − (λ / λ_min)^(1−α), over the m tail values in rising order, j = 0 … m − 1. Values that are not positive
    are left out. Raises ``UserError`` if fewer than two different ones are left.
    """
    values = _positive(eigenvalues)
    total = len(values)
    logs = values.log()
    tails = logs.flip(0).cumsum(0).flip(0)
    ranks = torch.arange(total, dtype=logs.dtype, device=logs.device)
    counts = total - ranks
    excess = (tails - counts * logs)[:-1]
    alphas = torch.where(excess > 0, 1 + counts[:-1] / excess, torch.inf)
    starts = torch.arange(total - 1, device=logs.device)
    distances = torch.cat(
        [_distances(logs, alphas, some) for some in starts.split(max(1, min(_AT_ONCE, total**2 // 16) // total))]
    )
    best = int(distances.argmin())
    return PowerLaw(alphas[best].item(), values[best].item(), distances[best].item(), total - best)


def _distances(
    logs: Float[Tensor, " n"], alphas: Float[Tensor, " m"], starts: Float[Tensor, " some"]
) -> Float[Tensor, " some"]:
    """The distances of the fits that begin at ``starts``, which are consecutive."""
    first = int(starts[0])
    logs, alphas, starts = logs[first:], alphas[first:], starts - first
    places = torch.arange(len(logs), dtype=logs.dtype, device=logs.device) - starts[:, None]
    above = (logs - logs[starts, None]).clamp(min=0)
    model = -torch.expm1((1 - alphas[starts, None]) * above)
    gaps = (model - places / (len(logs) - starts[:, None])).abs().masked_fill(places < 0, 0)
    return gaps.amax(-1).masked_fill(alphas[starts].isinf(), torch.inf)


def hill_exponent(eigenvalues: Float[Tensor, " n"], tail: int | None = None) -> float:
    """α = 1 + k / Σ_{i≤k} ln(λᵢ / λ_{k+1}) over the k = ``tail`` largest eigenvalues, half of them by default.

    Values that are not positive are left out. Raises ``UserError`` unless 1 ≤ ``tail`` < n, and if the tail is of
    one value repeated.
    """
    values = _positive(eigenvalues).flip(0)
    count = len(values) // 2 if tail is None else tail
    if not 1 <= count < len(values):
        raise UserError(f"tail={count} of {len(values)} positive eigenvalues; it must be 1 to {len(values) - 1}")
    excess = (values[:count] / values[count]).log().sum().item()
    if excess <= 0:
        raise UserError(f"the {count + 1} largest eigenvalues are equal; a tail exponent needs different ones")
    return 1 + count / excess


def _positive(eigenvalues: Float[Tensor, " n"]) -> Float[Tensor, " positive"]:
    """In rising order, in float64."""
    if eigenvalues.ndim != 1:
        raise UserError(f"eigenvalues of shape {list(eigenvalues.shape)}; a tail is fitted to a vector of them")
    values = eigenvalues[eigenvalues > 0].double().sort().values
    if len(values) < 2 or not values.isfinite().all() or values[0] == values[-1]:
        raise UserError("a tail needs at least two different positive eigenvalues, all of them finite")
    return values


@dataclass(frozen=True)
class Outliers:
    """``count`` singular values are above ``edge``; ``sigma`` is the standard deviation of the noise's entries."""

    count: int
    edge: float
    sigma: float


def outliers(singular: Float[Tensor, " n"], rows: int, columns: int) -> Outliers:
    """The singular values of a rows × columns matrix that independent entries of equal variance would not have.

    σ is the median singular value over that of the Marchenko–Pastur law, which few outliers do not move. The edge is
    the 99th percentile of the largest singular value of such noise, so that 1 in 100 random matrices has an outlier.
    Raises ``UserError`` if the number of values is not the smaller side.
    """
    small, large = sorted((rows, columns))
    if singular.shape != (small,):
        raise UserError(f"{list(singular.shape)} singular values for {rows} x {columns}; there must be {small}")
    sigma = singular.double().quantile(0.5).item() / math.sqrt(large * _marchenko_pastur_median(small / large))
    root, side = math.sqrt(max(large - 1, 1)), math.sqrt(small)
    spread = (root + side) * (1 / root + 1 / side) ** (1 / 3)
    edge = sigma * math.sqrt((root + side) ** 2 + _TRACY_WIDOM_99 * spread)
    return Outliers(int((singular > edge).sum()), edge, sigma)


@lru_cache(maxsize=256)
def _marchenko_pastur_median(ratio: float) -> float:
    """Of the eigenvalues of XᵀX / rows, X with unit variance and ratio = columns / rows ≤ 1."""
    low, radius = (1 - math.sqrt(ratio)) ** 2, 2 * math.sqrt(ratio)

    def eigenvalue(angle: float) -> float:
        """From the lower edge at 0 to the upper one at π; in angles the law's density has no roots at its edges."""
        return low + 2 * radius * math.sin(angle / 2) ** 2

    def share(angle: float) -> float:
        area: float = quad(lambda t: (radius * math.sin(t)) ** 2 / eigenvalue(t), 0, angle)[0]
        return area / (2 * math.pi * ratio)

    return eigenvalue(brentq(lambda angle: share(angle) - 0.5, 1e-3, math.pi))


def unit_rows(states: States) -> States:
    """The tokens' states less their mean over the text, each at unit length, in float32 at least.

    NaN where a state equals the mean, so for any text of one token.
    """
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    centred = wide - wide.mean(-2, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True)


def matrix_entropy(states: States) -> Float[Tensor, "*batch"]:
    """The entropy of the eigenvalues of XᵀX / time over ln hidden: 0 for one direction, 1 for all alike.

    ``states`` are those of one text, or of texts of one length; NaN where ``unit_rows`` has NaN.
    """
    rows = unit_rows(states)
    time, hidden = rows.shape[-2:]
    gram = rows @ rows.mT if time < hidden else rows.mT @ rows
    whole = rows.isfinite().all(-1).all(-1)
    shares = torch.linalg.eigvalsh(gram.nan_to_num()).clamp(min=0) / time
    entropy = torch.special.entr(shares).sum(-1) / math.log(hidden)
    return entropy.masked_fill(~whole, torch.nan)


def matrix_nuclear_norm(states: States) -> Float[Tensor, "*batch"]:
    """The sum of the min(time, hidden) largest column norms of X, over time: ‖X‖_* / time without singular values.

    Exact if the columns are orthogonal, and an upper bound if time ≥ hidden. It depends on the number of tokens, and
    on the axes of the hidden space; NaN where ``unit_rows`` has NaN.
    """
    rows = unit_rows(states)
    time, hidden = rows.shape[-2:]
    return rows.norm(dim=-2).topk(min(time, hidden), dim=-1).values.sum(-1) / time
