"""Runs as Ray tasks: on a local Ray, or on the cluster that ``RAY_ADDRESS`` names.

A cluster's machines need the same assay, the same data paths and a file system that they share for ``--out``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from assay.comparison.runners import Job, carry_out, runners
from assay.errors import AssayError, Interrupted, UserError


@runners.register("ray")
class RayRunner:
    """Raises ``UserError`` if Ray is not installed."""

    def __init__(self, workers: int, threads: int) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--runner ray needs Ray: pip install 'assay[ray]'") from None
        self.workers, self.threads, self.ray = workers, threads, ray

    def __enter__(self) -> Self:
        self._started = not self.ray.is_initialized()
        if self._started:
            local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": self.workers * self.threads}
            self.ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **local)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started:
            self.ray.shutdown()

    def run(self, batches: Sequence[Sequence[Job]]) -> Iterator[Job]:
        gpus = 1 if self.ray.cluster_resources().get("GPU") else 0
        task = self.ray.remote(num_cpus=self.threads, num_gpus=gpus, max_retries=0)(_batch)
        waiting: dict[Any, Sequence[Job]] = {task.remote(list(b), self.threads): b for b in batches}
        try:
            while waiting:
                done, _ = self.ray.wait(list(waiting), num_returns=1)
                self.ray.get(done)
                yield from waiting.pop(done[0])
        except KeyboardInterrupt:
            raise Interrupted("stopped; what is complete is kept, and the same command goes on") from None
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, AssayError) else AssayError(f"a run failed: {cause}")) from None
        except self.ray.exceptions.RayError as error:
            raise AssayError(f"Ray failed: {' '.join(str(error).split())[:200]}") from None


def _batch(batch: Sequence[Job], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    for job in batch:
        carry_out(job)
