"""A benchmark: contestants timed side by side, turn by turn, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch

from assay.claims.benchmarks import benchmarks
from assay.claims.ways import Measured, Work, ways
from assay.slots import Component, In

SHORTEST = 0.05
"""Seconds: a contestant is called as often in a row as it takes to last this long."""


@ways.register("benchmark")
class Benchmark:
    """``benchmark`` is a function of ``assay.claims.benchmarks``, by name or with its options, that returns callables
    by name; ``expect`` has regions of their seconds per call, as ratios: ``{ "ours / theirs" = "< 1" }``.
    """

    exact = False

    def __init__(
        self,
        *,
        benchmark: Annotated[Component[Mapping[str, Callable[[], Any]]], In(benchmarks)],
        expect: dict[str, str],
        rounds: int = 15,
    ) -> None:
        self.benchmark, self.rounds = benchmark, rounds
        self.expect: Mapping[str, str] = expect

    def measure(self, work: Work) -> Measured:
        contestants = self.benchmark.build()
        calls = {name: self._calls(contestant) for name, contestant in contestants.items()}
        values: dict[str, dict[int, float | None]] = {name: {} for name in contestants}
        for number in range(self.rounds):
            order = list(contestants)[:: 1 if number % 2 == 0 else -1]
            for name in order:
                values[name][number] = _seconds(contestants[name], calls[name]) / calls[name]
        return Measured(values, {"rounds": self.rounds}, {"unit": "seconds per call", "calls per round": calls})

    def _calls(self, contestant: Callable[[], Any]) -> int:
        _seconds(contestant, 3)
        return max(1, round(SHORTEST / _seconds(contestant, 1)))


def _seconds(contestant: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        contestant()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
