"""Geometry of the Poincaré ball of curvature −c: the points |x| < 1/√c with the metric λ(x)² ⟨·, ·⟩.

    λ(x)      = 2 / (1 − c|x|²)
    x ⊕ y     = ((1 + 2c⟨x, y⟩ + c|y|²) x + (1 − c|x|²) y) / (1 + 2c⟨x, y⟩ + c²|x|²|y|²)
    exp₀(v)   = tanh(√c|v|) v / (√c|v|)              exp_x(v) = x ⊕ exp₀(λ(x) v / 2)
    log₀(y)   = artanh(√c|y|) y / (√c|y|)            log_x(y) = 2/λ(x) · log₀(−x ⊕ y)
    d(x, y)   = 2 |log₀(−x ⊕ y)|
    gyr[u, v] = the rotation w ↦ −(u ⊕ v) ⊕ (u ⊕ (v ⊕ w))
    mid(x_i)  = f / (1 + √(1 − c|f|²)),    f = Σ λ(x_i) x_i / Σ (λ(x_i) − 1)

The last axis holds the coordinates. Ungar, 2008; Ganea, Bécigneul, Hofmann, 2018, arXiv:1805.09112.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

MARGIN = {torch.float64: 1e-5}
"""By how much of the radius points stay away from the border, by precision; 4e-3 in float32 and below it."""


def conformal_factor(x: Float[Tensor, "*batch dim"], c: float) -> Float[Tensor, "*batch 1"]:
    """λ(x)."""
    return 2 / (1 - c * x.square().sum(-1, keepdim=True))


def mobius_add(x: Float[Tensor, "*#batch dim"], y: Float[Tensor, "*#batch dim"], c: float) -> Float[Tensor, "*b dim"]:
    """x ⊕ y."""
    x2, y2, xy = x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True), (x * y).sum(-1, keepdim=True)
    return ((1 + 2 * c * xy + c * y2) * x + (1 - c * x2) * y) / (1 + 2 * c * xy + c * c * x2 * y2)


def exp0(v: Float[Tensor, "*batch dim"], c: float) -> Float[Tensor, "*batch dim"]:
    """exp₀(v), no closer to the border than the precision's margin."""
    angle = c**0.5 * length(v)
    return angle.tanh().clamp(max=1 - margin(v)) / angle * v


def log0(y: Float[Tensor, "*batch dim"], c: float) -> Float[Tensor, "*batch dim"]:
    """log₀(y), of a y beyond the precision's margin as of one at it."""
    radius = c**0.5 * length(y)
    return radius.clamp(max=1 - margin(y)).atanh() / radius * y


def exp(x: Float[Tensor, "*#batch dim"], v: Float[Tensor, "*#batch dim"], c: float) -> Float[Tensor, "*b dim"]:
    """exp_x(v): where the geodesic from x with the velocity v is after one unit of time."""
    return mobius_add(x, exp0(conformal_factor(x, c) / 2 * v, c), c)


def log(x: Float[Tensor, "*#batch dim"], y: Float[Tensor, "*#batch dim"], c: float) -> Float[Tensor, "*b dim"]:
    """log_x(y): the velocity with which a geodesic from x gets to y in one unit of time."""
    return 2 / conformal_factor(x, c) * log0(mobius_add(-x, y, c), c)


def distance(x: Float[Tensor, "*#batch dim"], y: Float[Tensor, "*#batch dim"], c: float) -> Float[Tensor, "*b"]:
    """d(x, y)."""
    return 2 * length(log0(mobius_add(-x, y, c), c)).squeeze(-1)


def gyrate(
    u: Float[Tensor, "*#batch dim"], v: Float[Tensor, "*#batch dim"], w: Float[Tensor, "*#batch dim"], c: float
) -> Float[Tensor, "*b dim"]:
    """gyr[u, v] w, in the form that is linear in w, which therefore may be of any length."""
    u2, v2 = u.square().sum(-1, keepdim=True), v.square().sum(-1, keepdim=True)
    uv, uw, vw = ((a * b).sum(-1, keepdim=True) for a, b in ((u, v), (u, w), (v, w)))
    of_u = c * vw * (1 + 2 * c * uv) - c * c * uw * v2
    of_v = -c * uw - c * c * vw * u2
    return w + 2 * (of_u * u + of_v * v) / (1 + 2 * c * uv + c * c * u2 * v2)


def transport(
    x: Float[Tensor, "*#batch dim"], y: Float[Tensor, "*#batch dim"], v: Float[Tensor, "*#batch dim"], c: float
) -> Float[Tensor, "*b dim"]:
    """The tangent vector v at x, moved to y along the geodesic: gyr[y, −x] v · λ(x) / λ(y)."""
    return gyrate(y, -x, v, c) * conformal_factor(x, c) / conformal_factor(y, c)


def midpoint(x: Float[Tensor, "points dim"], c: float) -> Float[Tensor, " dim"]:
    """mid(x_i), the centre of mass in the hyperboloid model."""
    factor = conformal_factor(x, c)
    f = (factor * x).sum(0) / (factor - 1).sum(0)
    return f / (1 + (1 - c * f.square().sum(-1, keepdim=True)).sqrt())


def margin(x: Tensor) -> float:
    return MARGIN.get(x.dtype, 4e-3)


def length(x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch 1"]:
    """|x|, but never 0, by which maps divide."""
    return x.norm(dim=-1, keepdim=True).clamp_min(1e-15)
