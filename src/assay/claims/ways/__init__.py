"""Ways of measuring a claim. Each is a component whose options are the ``measure`` table of the claim's record.

A way is chosen by the key that carries its name::

    measure = { compare = ["baseline", "seednorm"], expect = "lower" }
    measure = { property = "residual-growth", arms = ["baseline", "peri-ln"], expect = { ... } }
    measure = { benchmark = "unified-norm", expect = { "fused / layer-norm" = "< 1" } }
    measure = { experiment = "bigram-backcopy", expect = { ... } }
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from assay.claims.judging import Values
from assay.registry import Registry


@dataclasses.dataclass(frozen=True)
class Work:
    """Where a measurement keeps what it has done so far, so that it can be stopped and go on."""

    directory: Path
    progress: bool = False

    def shared(self, kind: str, settings: Any) -> Path:
        """A path that all claims with these settings share."""
        return self.directory / kind / fingerprint(settings)


@dataclasses.dataclass(frozen=True)
class Measured:
    """``values`` by quantity and seed, what was spent on them, and what a reader or a plot may want besides."""

    values: Values
    budget: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Way(Protocol):
    exact: bool
    """Whether one measurement is the quantity itself, not a sample of it."""

    @property
    def expect(self) -> Mapping[str, str]:
        """Regions by quantity."""
        ...

    def measure(self, work: Work) -> Measured:
        """Carry out what is missing, and return all."""
        ...


ways: Registry[Way] = Registry("way", __name__)


def fingerprint(settings: Any) -> str:
    """16 hexadecimal digits that name these settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
