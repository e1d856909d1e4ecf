"""Residual streams: how sublayers read from and write to what runs through the depth of the network.

A stream is constructed with what it asks for of ``(hidden_size, num_sublayers)``. Its state is whatever it
likes (one tensor, a list of earlier outputs, several rates); the decoder only passes the state on.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from assay.registry import Registry


class ResidualStream(nn.Module):
    """The plain stream x ← x + y; others override what they change."""

    def start(self, x: Float[Tensor, "batch time hidden"]) -> Any:
        """The state before the first sublayer, from the embedding."""
        return x

    def read(self, state: Any, sublayer: int) -> Float[Tensor, "batch time hidden"]:
        """The input of sublayer ``sublayer`` (counted from 0 through the whole network)."""
        return state

    def write(self, state: Any, y: Float[Tensor, "batch time hidden"], sublayer: int) -> Any:
        """The state after sublayer ``sublayer`` gave ``y``."""
        return state + y

    def normalize(self, state: Any, norm: nn.Module) -> Any:
        """The state with ``norm`` applied to the stream itself (Post-LN)."""
        return norm(state)

    def finish(self, state: Any) -> Float[Tensor, "batch time hidden"]:
        """What the head sees."""
        return state


residuals: Registry[ResidualStream] = Registry("residual", __name__)
residuals.register("plain")(ResidualStream)
