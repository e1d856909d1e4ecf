"""An experiment: a function of its own that returns quantities for a seed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Annotated, Any

import torch
from rich.progress import track

from assay.claims.experiments import experiments
from assay.claims.ways import Measured, Work, ways
from assay.comparison.runners.local import import_early
from assay.comparison.workers import available_cores
from assay.errors import AssayError
from assay.files import disk_errors, write_json
from assay.slots import Component, In


@ways.register("experiment")
class Experiment:
    """``experiment`` is a function of ``assay.claims.experiments``, by name or with its options.

    With ``exact = true`` one seed is enough: the quantities do not depend on chance. On a CPU the seeds are shared
    out among processes.
    """

    def __init__(
        self,
        *,
        experiment: Annotated[Component[dict[str, float]], In(experiments)],
        expect: dict[str, str],
        seeds: int = 5,
        exact: bool = False,
    ) -> None:
        self.experiment, self.seeds, self.exact = experiment, seeds, exact
        self.expect: Mapping[str, str] = expect

    def measure(self, work: Work) -> Measured:
        folder = work.shared("experiments", self.experiment.dump())
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        paths = {seed: folder / f"seed-{seed}.json" for seed in range(self.seeds)}
        missing = [seed for seed, path in paths.items() if not path.exists()]
        done = self._run(missing)
        for seed, found in track(done, self.experiment.name, len(missing), disable=not work.progress, transient=True):
            write_json(paths[seed], {name: x if math.isfinite(x) else None for name, x in found.items()})
        values: dict[str, dict[int, float | None]] = {}
        for seed, path in paths.items():
            for name, value in json.loads(path.read_text(encoding="utf-8")).items():
                values.setdefault(name, {})[seed] = value
        return Measured(values, {"seeds": self.seeds})

    def _run(self, seeds: Sequence[int]) -> Iterator[tuple[int, dict[str, float]]]:
        processes = 1 if torch.accelerator.is_available() else min(available_cores(), len(seeds))
        if processes <= 1:
            yield from (_one(self.experiment.dump(), seed) for seed in seeds)
            return
        threads = available_cores() // processes
        with ProcessPoolExecutor(processes, import_early(), _start, (dict(os.environ), threads)) as pool:
            waiting = [pool.submit(_one, self.experiment.dump(), seed) for seed in seeds]
            try:
                for future in as_completed(waiting):
                    yield future.result()
            except BrokenProcessPool:
                reason = "a worker process died; the seeds that are done are kept, and the same command goes on"
                raise AssayError(reason) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _start(environment: dict[str, str], threads: int) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)


def _one(experiment: Any, seed: int) -> tuple[int, dict[str, float]]:
    found = Component.parse(experiments, experiment).build(seed=seed)
    return seed, {name: float(value) for name, value in found.items()}
