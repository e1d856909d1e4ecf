"""``shuffled``: windows in a random order, cut anew in each epoch."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from assay.data.order import Documents, Order, orders


@orders.register("shuffled")
class Shuffled(Order):
    """The training text is a ring, cut into windows from a random offset on; they come in a random order."""

    def __init__(self, documents: Documents) -> None:
        self.tokens = documents.tokens

    def places(
        self, windows: Int[np.ndarray, " windows"], *, seed: int, epoch: int, sequence_length: int
    ) -> Int[np.ndarray, "windows time+1"]:
        offset, order = _epoch(seed, epoch, self.tokens // sequence_length, sequence_length)
        starts = offset + order[windows] * sequence_length
        return (starts[:, None] + np.arange(sequence_length + 1)) % self.tokens


class _Epoch(NamedTuple):
    offset: int
    order: Int[np.ndarray, " windows"]


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, windows: int, sequence_length: int) -> _Epoch:
    random = np.random.default_rng([seed, epoch])
    return _Epoch(int(random.integers(sequence_length)), random.permutation(windows))
