"""Curvature: the Hessian H of a loss around its parameters w, through its products with vectors.

    trace                Tr H = E[vᵀHv], v of independent signs ±1 (Hutchinson)
    largest eigenvalue   max vᵀHv over ‖v‖ = 1, by Lanczos
    sharpness            max L(w + ε) − L(w) over ‖ε‖₂ ≤ ρ, by ε ← ρ ∇L(w + ε) / ‖∇L(w + ε)‖ from ε = 0

A loss is a function without arguments that gives a scalar from the parameters as they stand. No Hessian is formed:
a product costs about two backward passes. Hutchinson, 1989 (trace); Lanczos, 1950; Foret et al., 2020,
arXiv:2010.01412 (sharpness, whose first step is SAM's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import UserError

Loss = Callable[[], Float[Tensor, ""]]
Vector = Float[Tensor, " parameters"]
"""All parameters one after the other."""


class Estimate(NamedTuple):
    """A mean of random draws and the standard error of that mean, NaN for a single draw."""

    mean: float
    error: float


class Eigenvalue(NamedTuple):
    """Some eigenvalue of the matrix is within ``residual`` of ``value``."""

    value: float
    residual: float


def hessian(loss: Loss, parameters: Sequence[Tensor]) -> Callable[[Vector], Vector]:
    """v ↦ Hv by the gradient of ∇L · v; ``loss`` is evaluated once, here.

    Attention of fused kernels has no second derivative: load such a model with ``attn_implementation="eager"``.
    Raises ``UserError`` if there is no parameter, or the loss is no finite scalar that depends on one.
    """
    chosen = _trainable(parameters)
    value = _checked(loss())
    slopes = torch.autograd.grad(value, chosen, create_graph=True, allow_unused=True)
    gradient = _flat(slopes, chosen)
    if not any(slope is not None for slope in slopes):
        raise UserError("the loss depends on none of the parameters")

    def product(vector: Vector) -> Vector:
        if not gradient.requires_grad:
            return torch.zeros_like(vector)
        parts = torch.autograd.grad(gradient, chosen, vector, retain_graph=True, allow_unused=True)
        return _flat(parts, chosen)

    return product


def hessian_trace(
    loss: Loss, parameters: Sequence[Tensor], probes: int = 32, generator: torch.Generator | None = None
) -> Estimate:
    """Tr H from ``probes`` vectors of random signs; exact for a diagonal H.

    Raises ``UserError`` as ``hessian`` does, and for fewer than one probe.
    """
    if probes < 1:
        raise UserError(f"probes={probes}; a trace needs at least 1")
    product = hessian(loss, parameters)
    draws = []
    for _ in range(probes):
        signs = _random(parameters, generator).sign()
        draws.append(torch.dot(signs, product(signs)))
    found = torch.stack(draws).double()
    return Estimate(found.mean().item(), found.std().item() / math.sqrt(probes) if probes > 1 else math.nan)


def largest_eigenvalue(
    loss: Loss,
    parameters: Sequence[Tensor],
    steps: int = 64,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Eigenvalue:
    """The largest (most positive) eigenvalue of H after at most ``steps`` Lanczos steps.

    It stops when the residual ‖Hv − λv‖ is below ``tolerance`` · |λ|. Three vectors of the parameters' size are kept.
    Raises ``UserError`` as ``hessian`` does, and for fewer than one step.
    """
    if steps < 1:
        raise UserError(f"steps={steps}; an eigenvalue needs at least 1")
    product = hessian(loss, parameters)
    current = _random(parameters, generator)
    current, previous = current / current.norm(), torch.zeros_like(current)
    diagonal: list[float] = []
    beside: list[float] = []
    size = len(current)
    for _ in range(min(steps, size)):
        following = product(current)
        diagonal.append(torch.dot(current, following).item())
        following -= diagonal[-1] * current
        if beside:
            following -= beside[-1] * previous
        beside.append(following.norm().item())
        found = _top(diagonal, beside)
        if (len(diagonal) > 1 and found.residual <= tolerance * abs(found.value)) or beside[-1] == 0:
            break
        previous, current = current, following / beside[-1]
    return found


def _top(diagonal: list[float], beside: list[float]) -> Eigenvalue:
    """The largest eigenvalue of the tridiagonal matrix so far, and what the next step could change it by."""
    off = torch.tensor(beside[:-1], dtype=torch.float64)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return Eigenvalue(values[-1].item(), beside[-1] * abs(vectors[-1, -1].item()))


def sharpness(
    loss: Loss,
    parameters: Sequence[Tensor],
    radius: float,
    steps: int = 1,
    generator: torch.Generator | None = None,
) -> float:
    """The largest rise of the loss found within ``radius`` of the parameters, which are left as they were.

    One step is SAM's estimate. More of them climb on a locally convex loss, as power iteration does. Where the
    gradient vanishes the first direction is random. Raises ``UserError`` for a ``radius`` or ``steps`` that is not
    positive, and as ``hessian`` does.
    """
    if not (0 < radius < math.inf) or steps < 1:
        raise UserError(f"radius={radius}, steps={steps}; both must be positive")
    chosen = _trainable(parameters)
    start = [parameter.detach().clone() for parameter in chosen]
    before = best = _checked(loss())
    here = best
    try:
        for _ in range(steps):
            direction = _flat(torch.autograd.grad(here, chosen, allow_unused=True), chosen)
            if direction.norm() == 0:
                direction = _random(chosen, generator)
            _move(chosen, start, direction * (radius / direction.norm()))
            here = loss()
            best = torch.maximum(best.detach(), here.detach())
        return (best - before).item()
    finally:
        _move(chosen, start, torch.zeros(sum(p.numel() for p in chosen)))


@torch.no_grad()
def _move(parameters: Sequence[Tensor], start: Sequence[Tensor], step: Vector) -> None:
    parts = step.split([parameter.numel() for parameter in parameters])
    for parameter, origin, part in zip(parameters, start, parts, strict=True):
        parameter.copy_(origin + part.view_as(origin).to(origin))


def _trainable(parameters: Sequence[Tensor]) -> list[Tensor]:
    chosen = list(parameters)
    if not chosen or not all(parameter.requires_grad for parameter in chosen):
        raise UserError("curvature needs parameters, all of which require gradients")
    return chosen


def _checked(value: Tensor) -> Tensor:
    if value.numel() != 1 or not value.isfinite().all():
        raise UserError(f"a loss of shape {list(value.shape)} that is {value.tolist()}; it must be a finite number")
    if not value.requires_grad:
        raise UserError("the loss depends on none of the parameters")
    return value.squeeze()


def _flat(parts: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Vector:
    return torch.cat(
        [
            (torch.zeros_like(parameter) if part is None else part).flatten()
            for part, parameter in zip(parts, parameters, strict=True)
        ]
    )


def _random(parameters: Sequence[Tensor], generator: torch.Generator | None) -> Vector:
    """Normal numbers, drawn on the CPU so that they do not depend on the device."""
    first = parameters[0]
    count = sum(parameter.numel() for parameter in parameters)
    return torch.randn(count, generator=generator).to(first)
