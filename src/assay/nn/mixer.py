"""Mixers: whatever lets tokens exchange information, behind one interface ``(x, positions, cache) → y``.

A mixer is constructed with what it asks for of ``(hidden_size, num_heads, num_kv_heads, head_dim, layer,
norm)``; ``layer`` is its place in the network, which is also its place in the cache, and ``norm`` makes norms
of the configured kind.
"""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn

from assay.registry import Registry


class Cache(Protocol):
    """Keys and values of earlier tokens; the caches of transformers fit."""

    def update(
        self,
        key_states: Float[Tensor, "batch heads new dim"],
        value_states: Float[Tensor, "batch heads new dim"],
        layer_idx: int,
    ) -> tuple[Float[Tensor, "batch heads all dim"], Float[Tensor, "batch heads all dim"]]:
        """Append, and return all keys and values of that layer so far."""
        ...


mixers: Registry[nn.Module] = Registry("mixer", "assay.nn.attention")
