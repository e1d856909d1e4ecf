"""Runs on this machine: in this process for one worker, in processes of their own for more."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, Self

from assay.comparison.runners import Job, carry_out, runners
from assay.errors import AssayError, Interrupted

_stop: Any = None
"""In a worker: the event that asks it to save and stop."""


@runners.register("local")
class LocalRunner:
    """Workers are forked from a process that has done nothing but import; see ``import_early``."""

    def __init__(self, workers: int, threads: int) -> None:
        self.workers, self.threads = workers, threads

    def __enter__(self) -> Self:
        self._pool: ProcessPoolExecutor | None = None
        if self.workers > 1:
            context = import_early()
            self._stop = context.Event()
            gpus = context.Queue()
            for number in range(self.workers):
                gpus.put(number)
            self._pool = ProcessPoolExecutor(
                self.workers, context, initializer=_start, initargs=(dict(os.environ), self.threads, self._stop, gpus)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, batches: Sequence[Sequence[Job]]) -> Iterator[Job]:
        if self._pool is None:
            yield from self._run_here(batches)
            return
        waiting: dict[Future[list[Job]], Sequence[Job]] = {self._pool.submit(_batch, b): b for b in batches}
        try:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    del waiting[future]
                    yield from future.result()
        except KeyboardInterrupt:
            self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)
            raise Interrupted("stopped, everything is saved; the same command goes on") from None
        except BrokenProcessPool:
            raise AssayError(
                "a worker process died (killed, or out of memory); what is complete is kept, and the same command "
                "goes on, with fewer --jobs if memory was short"
            ) from None

    def _run_here(self, batches: Sequence[Sequence[Job]]) -> Iterator[Job]:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            for job in (job for batch in batches for job in batch):
                carry_out(job)
                yield job
        except Interrupted:
            raise Interrupted("stopped, everything is saved; the same command goes on") from None
        finally:
            torch.set_num_threads(before)


def import_early() -> BaseContext:
    """Start the process from which workers will be forked, so that it imports while this one imports and plans.

    Where processes cannot be forked, workers are spawned, and import for themselves.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["assay.training.loop", "torch._dynamo"])
    forkserver.ensure_running()
    return context


def _start(environment: dict[str, str], threads: int, stop: Any, gpus: Any) -> None:
    """Prepare a worker: Ctrl-C is the parent's to handle, and each worker has its own GPU where there are any."""
    import signal

    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment, OMP_NUM_THREADS=str(threads))
    import torch

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(gpus.get() % torch.cuda.device_count())


def _batch(batch: Sequence[Job]) -> list[Job]:
    for job in batch:
        carry_out(job, _stop)
    return list(batch)
