"""Experiments: functions of a seed, for claims that need their own task or network.

An experiment takes ``seed`` and, after the ``*``, options; it returns numbers by name. All that is random comes from
the seed::

    @experiments.register("bigram-backcopy")
    def bigram_backcopy(seed: int, *, steps: int = 2000) -> dict[str, float]: ...
"""

from __future__ import annotations

from assay.registry import Registry

experiments: Registry[dict[str, float]] = Registry("experiment", __name__)
