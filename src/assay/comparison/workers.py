"""How many processes a comparison uses, of how many threads, and which runs each takes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from assay.comparison.runners import Job
from assay.errors import UserError
from assay.training.config import RunConfig
from assay.training.flops import parameter_count


def choose(config: RunConfig, runs: int, jobs: int | None) -> tuple[int, int]:
    """(processes, threads in each) for that many runs of about this size.

    On CPU, processes of one thread beat one process of many threads as long as the runs fit into memory, because
    nothing has to be shared; on GPUs there is one process for each. Raises ``UserError`` for ``jobs`` below 1.
    """
    import psutil
    import torch

    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: at least one worker is needed")
    cores = available_cores()
    if torch.cuda.is_available():
        workers = min(jobs or torch.cuda.device_count(), runs)
        return workers, max(1, cores // workers)
    activations = 64 * config.data.batch_size * config.data.sequence_length * config.model.hidden_size
    need = 16 * parameter_count(config.model) + 4 * activations * config.model.depth
    fitting = max(1, int(0.8 * psutil.virtual_memory().available // need))
    workers = min(jobs or min(cores, fitting), runs)
    return workers, max(1, cores // workers)


def available_cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def batches(jobs: Sequence[Sequence[Job]], workers: int, *, together: bool) -> list[list[Job]]:
    """Jobs, given arm by arm, as batches that one process carries out in order.

    Each on its own, seed by seed over all arms, so that what is done first can be compared first; or, where the
    runs of an arm share a compiled graph, ``together``: each arm in as few batches as keep all workers busy.
    """
    if not together:
        longest = max((len(arm) for arm in jobs), default=0)
        return [[arm[index]] for index in range(longest) for arm in jobs if index < len(arm)]
    parts = max(1, -(-workers // max(1, len(jobs))))
    result = []
    for arm in jobs:
        size = -(-len(arm) // parts) if arm else 1
        result += [list(arm[start : start + size]) for start in range(0, len(arm), size)]
    return result
