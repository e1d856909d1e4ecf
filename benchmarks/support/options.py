"""Options that all benchmarks have, and the machine as they leave it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a smoke run of a few seconds; its figures mean nothing")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return made


def names(text: str) -> list[str]:
    """``"a,b"`` as ``["a", "b"]``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """Start this process anew with a C library that returns no memory to the system between steps.

    Whether glibc's does is a matter of what happens to lie at the end of the heap; it can cost one side of a
    comparison a fifth of its speed and the other nothing.
    """
    wanted = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(1 << 32))
    wanted["MALLOC_TOP_PAD_"] = str(1 << 26)
    if sys.platform == "linux" and not wanted.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def use_threads(threads: int) -> None:
    """Compute with so many threads; to be called before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
