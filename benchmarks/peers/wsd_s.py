"""WSD-S beside the schedule of its authors, step by step: python benchmarks/peers/wsd_s.py CLONE

CLONE is a clone of github.com/marin-community/levanter, which needs jax and optax. Both give the rate at the index of
each step. Theirs ends a cycle's decay as ours does, but takes u = 1 / D in its first step of an inverse decay, too,
where ours and the definition have u = 0: that step is left out. Their rates are float32.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import jax.numpy  # noqa: F401  (starts before torch does: both carry a library that starts once)
import torch
from clones import Differences, Peer
from torch import Tensor

from assay.optim.schedule.shapes import Shape
from assay.optim.schedule.wsd_s import WSDS

STEPS, RATE, FLOOR = 1000, 1e-3, 0.1
CYCLES: dict[str, tuple[int, ...]] = {"one cycle": (), "two": (400,), "three": (300, 700)}
SHAPES: dict[str, Shape] = {"inv": "inverse", "linear": "linear", "cosine": "cosine"}
ABSENT = (
    "equinox",
    "haliax",
    "levanter",
    "levanter.tracker",
    "levanter.optim",
    "levanter.optim.clip_update_norm",
    "levanter.optim.mup",
    "levanter.optim.skipstep",
    "levanter.optim.util",
    "levanter.utils",
    "levanter.utils.jax_utils",
)


class Choices:
    """What the authors' classes need of draccus: a decorator that names them."""

    @classmethod
    def register_subclass(cls, name: str) -> Any:
        return lambda found: found


def main() -> None:
    sys.modules["config"] = ModuleType("config")  # where dataclasses look for the names of the authors' file
    sys.modules["draccus"] = ModuleType("draccus")
    sys.modules["draccus"].ChoiceRegistry = Choices  # type: ignore[attr-defined]
    peer = Peer(__doc__, "github.com/marin-community/levanter", "src/levanter/optim/config.py", absent=ABSENT)
    found = Differences()
    for name, minima in CYCLES.items():
        for theirs, shape in SHAPES.items():
            for decay in (0.1, 0.5):
                compare(peer, found, name, minima, theirs, shape, decay)
    found.write(peer, __file__, steps=STEPS, rate=RATE, floor=FLOOR, warmup=0.1, dtype="float64 and float32")


def compare(
    peer: Peer, found: Differences, name: str, minima: tuple[int, ...], theirs: str, shape: Shape, decay: float
) -> None:
    ends = [*minima, STEPS]
    config = peer.module.AdamConfig(
        learning_rate=RATE, min_lr_ratio=FLOOR, warmup=0.1, decay=decay, lr_schedule=theirs, cycles=list(minima)
    )
    schedule = config.lr_scheduler(STEPS)
    budgets = tuple(end / STEPS for end in minima)
    ours = WSDS(budgets=budgets, warmup=0.1 * ends[0] / STEPS, decay=decay, final=FLOOR, shape=shape)
    first = {round(end - decay * (end - start)) for start, end in zip([0, *ends], ends, strict=False)}
    steps = [step for step in range(STEPS) if theirs != "inv" or step not in first]
    found.add(f"{shape}, {name}", rates(lambda step: RATE * ours(step / STEPS), steps), rates(schedule, steps))


def rates(schedule: Any, steps: list[int]) -> Tensor:
    return torch.tensor([float(schedule(step)) for step in steps], dtype=torch.float64)


if __name__ == "__main__":
    main()
