"""Runners: where the runs of a comparison are carried out.

A runner takes batches of jobs, carries out each batch in order in one process, and yields jobs as they end. It is
constructed with ``(workers, threads)``: how many processes, and how many threads of computation each has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from assay.registry import Registry


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to carry out, in plain data, so that it can go to another process or machine."""

    config: dict[str, Any]
    directory: str
    sharing: int = 1
    """Like runs that one process carries out one after another."""


class Runner(AbstractContextManager["Runner"], Protocol):
    def run(self, batches: Sequence[Sequence[Job]]) -> Iterator[Job]:
        """Carry out all jobs and yield each that has ended. The first error stops the rest and is raised."""
        ...


runners: Registry[Runner] = Registry("runner", __name__)


def carry_out(job: Job, stop: Any = None) -> None:
    """Do one job in this process, going on from where an earlier attempt stopped."""
    from assay.training.loop import train

    train(job.config, out=job.directory, resume=True, sharing=job.sharing, stop=stop)
