"""Benchmarks: functions that return contestants, callables by name, which do the same work in different ways.

They are timed turn by turn by ``assay.claims.ways.benchmark``; options follow the ``*``::

    @benchmarks.register("unified-norm")
    def unified_norm(*, hidden_size: int = 768) -> dict[str, Callable[[], object]]: ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from assay.registry import Registry

benchmarks: Registry[Mapping[str, Callable[[], Any]]] = Registry("benchmark", __name__)
