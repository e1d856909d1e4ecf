"""Projected gradient ascent: inputs within a radius that a network gets wrong.

    x̃ ← clip( Π( x̃ + α · direction(∇ loss(f(x̃), y)) ) ),    ‖x̃ − x‖ ≤ ρ

The direction is the sign of the gradient in L∞, and the gradient over its norm, image by image, in L2; Π projects
into the ball of radius ρ around x. Madry et al., 2017, arXiv:1706.06083.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import UserError


@dataclasses.dataclass(frozen=True)
class PGD:
    """``radius`` ρ and ``step_size`` α in units of the inputs; ``steps`` of them from a random point of the ball, or
    from x itself. ``bounds`` are those of the inputs, if they have any.

    Raises ``UserError`` for a negative radius or step size, no steps, or bounds the wrong way round.
    """

    radius: float
    step_size: float
    steps: int = 10
    norm: Literal["linf", "l2"] = "linf"
    random_start: bool = True
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("radius", "step_size"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"{name}={value}: it should be at least 0 and finite")
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: an attack takes at least 1 step")
        if self.norm not in ("linf", "l2"):
            raise UserError(f"norm={self.norm!r}: it should be 'linf' or 'l2'")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise UserError(f"bounds={self.bounds}: the lower one comes first")

    def __call__(
        self,
        model: nn.Module,
        inputs: Float[Tensor, "n ..."],
        labels: Tensor,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n ..."]:
        """Attacked inputs, without gradient. The model is in evaluation mode meanwhile, and gets no gradients.

        ``loss`` is a mean over the batch; ``generator`` draws the random start.
        """
        modes = {module: module.training for module in model.modules()}
        model.eval()
        attacked = inputs.detach()
        if self.random_start:
            attacked = self._clip(inputs + self._anywhere(inputs, generator))
        with torch.enable_grad():
            for _ in range(self.steps):
                attacked.requires_grad_()
                (gradient,) = torch.autograd.grad(loss(model(attacked), labels), attacked)
                ahead = attacked.detach() + self.step_size * self._direction(gradient)
                attacked = self._clip(inputs + self._project(ahead - inputs)).detach()
        for module, training in modes.items():
            module.training = training
        return attacked

    def _direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign() if self.norm == "linf" else gradient / lengths(gradient).clamp(min=1e-30)

    def _project(self, change: Tensor) -> Tensor:
        if self.norm == "linf":
            return change.clamp(-self.radius, self.radius)
        return change * (self.radius / lengths(change).clamp(min=1e-30)).clamp(max=1)

    def _anywhere(self, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Uniform in the ball."""
        if self.norm == "linf":
            uniform = torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype)
            return self.radius * (2 * uniform - 1).to(inputs.device)
        normal = torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
        share = torch.rand(len(inputs), generator=generator, dtype=inputs.dtype) ** (1 / inputs[0].numel())
        share = share.view(-1, *[1] * (inputs.ndim - 1))
        return (self.radius * share * normal / lengths(normal)).to(inputs.device)

    def _clip(self, inputs: Tensor) -> Tensor:
        return inputs if self.bounds is None else inputs.clamp(*self.bounds)


def lengths(x: Float[Tensor, "n ..."]) -> Tensor:
    """L2 norms, one of each sample, in a shape that broadcasts against ``x``."""
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
