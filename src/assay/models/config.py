"""The configuration of a decoder: its sizes, and a component for each slot."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from torch import nn

from assay.config import Config
from assay.nn.head import heads
from assay.nn.linear import linears
from assay.nn.mixer import mixers
from assay.nn.mlp import mlps
from assay.nn.norm import norms
from assay.nn.placement import PlacementRule, placements
from assay.nn.position import Position, positions
from assay.nn.residual import ResidualStream, residuals
from assay.slots import Component, In, Pattern

Size = Annotated[int, Field(gt=0)]
Derived: Any = None
"""The default of a field that follows from the others."""


class ModelConfig(Config):
    """Sizes and slots of a decoder.

    ``depth`` alone gives a sensible network: 64 features and one head per layer (depth 12 is the shape of GPT-2
    small), an MLP of the usual expansion of its kind, and everything in between in proportion. Whatever is given
    explicitly stays as given. ``vocab_size`` and ``max_length`` come from the data where they are not set.
    """

    depth: Size = 4
    hidden_size: Size = Derived
    num_heads: Size = Derived
    num_kv_heads: Size = Derived
    head_dim: Size = Derived
    intermediate_size: Size = Derived
    vocab_size: Size | None = None
    max_length: Size | None = None
    init_std: Annotated[float, Field(gt=0)] = 0.02

    norm: Annotated[Component[nn.Module], In(norms, default="rms-norm")] = Component(norms, "rms-norm")
    placement: Annotated[Component[PlacementRule], In(placements, default="pre-ln")] = Component(placements, "pre-ln")
    residual: Annotated[Component[ResidualStream], In(residuals, default="plain")] = Component(residuals, "plain")
    mixer: Annotated[Pattern[nn.Module], In(mixers, default="softmax", pattern=True)] = Pattern(
        (Component(mixers, "softmax"),)
    )
    mlp: Annotated[Pattern[nn.Module], In(mlps, default="swiglu", pattern=True)] = Pattern(
        (Component(mlps, "swiglu"),)
    )
    linear: Annotated[Component[nn.Linear], In(linears, default="plain")] = Component(linears, "plain")
    position: Annotated[Component[Position], In(positions, default="rotary")] = Component(positions, "rotary")
    head: Annotated[Component[nn.Module], In(heads, default="untied")] = Component(heads, "untied")

    @model_validator(mode="after")
    def _derive(self) -> Self:
        if self.hidden_size is None:
            self._set(hidden_size=64 * self.depth)
        if self.num_heads is None:
            self._set(num_heads=_divisor(self.hidden_size, near=self.hidden_size / (self.head_dim or 64)))
        if self.head_dim is None:
            if self.hidden_size % self.num_heads:
                near = _divisor(self.hidden_size, near=self.num_heads)
                raise ValueError(
                    f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}; "
                    f"{near} does, or set head_dim"
                )
            self._set(head_dim=self.hidden_size // self.num_heads)
        if self.num_kv_heads is None:
            self._set(num_kv_heads=self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}; "
                "each key and value head serves the same number of query heads"
            )
        if self.intermediate_size is None:
            component = self.mlp.components[0]
            expansion = getattr(component.registry[component.name], "expansion", 4.0)
            self._set(intermediate_size=8 * round(expansion * self.hidden_size / 8))
        return self

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def learning_rate(self) -> float:
        """AdamW's learning rate for this width: 6e-4 at 768 features (GPT-2 small), inverse in the width's root."""
        return 6e-4 * (768 / self.hidden_size) ** 0.5


def _divisor(number: int, *, near: float) -> int:
    """The divisor of ``number`` closest to ``near``."""
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - near))
