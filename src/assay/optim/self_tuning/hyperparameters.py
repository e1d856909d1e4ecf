"""Hyper-parameters as parameters: unbounded values h, the widths of their perturbations, and the maps to real ones.

    r(h) = min + (max − min) σ(h)     with both bounds
    r(h) = min + softplus(h)          with a lower bound only
    r(h) = max − softplus(h)          with an upper bound only
    r(h) = h                          with none

MacKay et al., 2019, arXiv:1903.03088.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import UserError

Values = Float[Tensor, "batch hyperparameters"]


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """``initial`` lies between the bounds; ``scale`` is the standard deviation of the perturbations of h.

    One that cannot differ between the examples of a batch (``per_example=False``) takes the first one's. Raises
    ``UserError`` for values that do not fit together.
    """

    name: str
    initial: float
    minimum: float = -math.inf
    maximum: float = math.inf
    scale: float = 0.5
    per_example: bool = True

    def __post_init__(self) -> None:
        if not self.minimum < self.initial < self.maximum:
            raise UserError(f"{self.name}: initial={self.initial} is not between {self.minimum} and {self.maximum}")
        if not 0 < self.scale < math.inf:
            raise UserError(f"{self.name}: scale={self.scale}; it must be positive")

    def constrained(self, h: Tensor) -> Tensor:
        """r(h)."""
        if math.isfinite(self.minimum) and math.isfinite(self.maximum):
            return self.minimum + (self.maximum - self.minimum) * h.sigmoid()
        if math.isfinite(self.minimum):
            return self.minimum + F.softplus(h)
        return self.maximum - F.softplus(h) if math.isfinite(self.maximum) else h

    def unconstrained(self) -> float:
        """The h of ``initial``."""
        if math.isfinite(self.minimum) and math.isfinite(self.maximum):
            return math.log((self.initial - self.minimum) / (self.maximum - self.initial))
        if math.isfinite(self.minimum):
            return inverse_softplus(self.initial - self.minimum)
        return inverse_softplus(self.maximum - self.initial) if math.isfinite(self.maximum) else self.initial


class Hyperparameters(nn.Module):
    """``values`` are h, ``scales`` are s, in the order given. Raises ``UserError`` for none, or two of one name."""

    def __init__(self, hyperparameters: Sequence[Hyperparameter]) -> None:
        super().__init__()
        self.all = tuple(hyperparameters)
        names = [each.name for each in self.all]
        if not names or len(set(names)) < len(names):
            raise UserError(f"hyper-parameters {names}; give at least one, and each a name of its own")
        self.values = nn.Parameter(torch.tensor([each.unconstrained() for each in self.all]))
        self.scales = nn.Parameter(torch.tensor([inverse_softplus(each.scale) for each in self.all]))

    def __len__(self) -> int:
        return len(self.all)

    def perturbed(self, count: int, generator: torch.Generator | None = None) -> Values:
        """h + softplus(s) ε for ``count`` examples."""
        noise = torch.randn(count, len(self), generator=generator, device=self.values.device)
        shared = torch.tensor([not each.per_example for each in self.all], device=noise.device)
        noise = torch.where(shared, noise[:1], noise)
        return self.values + F.softplus(self.scales) * noise

    def repeated(self, count: int) -> Values:
        """h itself for ``count`` examples."""
        return self.values.expand(count, -1)

    def constrained(self, h: Values) -> dict[str, Float[Tensor, " batch"]]:
        """The hyper-parameters themselves by name, without a gradient: none leads from the training loss to h."""
        return {each.name: each.constrained(h[:, place]).detach() for place, each in enumerate(self.all)}

    def current(self) -> dict[str, float]:
        return {name: value.item() for name, value in self.constrained(self.repeated(1)).items()}

    def entropy(self) -> Float[Tensor, ""]:
        """Of the perturbations, in nats: Σ ln(softplus(s) √(2πe))."""
        return (F.softplus(self.scales).log() + 0.5 * math.log(2 * math.pi * math.e)).sum()


def inverse_softplus(x: float) -> float:
    """ln(eˣ − 1), for any positive x."""
    return x + math.log(-math.expm1(-x))
