"""A made-up comparison of any size, whose numbers follow from its arguments alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest

from assay.comparison.result import ArmResult, Candidate, Comparison, Point, RunResult, Tuning
from assay.comparison.statistics import compare_arms

NAMES = (
    "baseline",
    "seednorm",
    "peri-ln",
    "layernorm-scaling",
    "gated-attention",
    "peri-ln+gated-attention+layernorm-scaling",
    "muon",
    "qk-norm",
    "mix-ln",
    "wide",
    "value-residual",
    "post-ln",
    "keel",
)
EFFECTS = (0.0, -0.021, -0.001, 0.016, -0.034, -0.045, -0.08, 0.002, 0.0, -0.02, -0.012, 0.03, -0.003)
STEPS, TOKENS_PER_STEP = 240, 4096


def _run(name: str, seed: int, effect: float, noise: float, diverged_at: int | None) -> RunResult:
    luck = random.Random(seed)
    own = random.Random(f"{name} {seed}")
    offset = luck.gauss(0, 0.012) + effect + own.gauss(0, noise)
    speed = 51_000 * (1 - 4 * abs(effect))

    def loss(step: int) -> float:
        blow_up = math.exp((step - diverged_at) / 12) if diverged_at else 0.0
        return 1.42 + offset * min(1, 2 * step / STEPS) + 2.4 * math.exp(-step / 38) + blow_up

    def point(step: int, value: float) -> Point:
        tokens = step * TOKENS_PER_STEP
        return Point(step=step, tokens=tokens, seconds=tokens / speed, value=value)

    last = min(STEPS, diverged_at or STEPS)
    tokens = last * TOKENS_PER_STEP
    return RunResult(
        arm=name,
        seed=seed,
        id=f"{own.getrandbits(48):012x}",
        status="diverged" if diverged_at else "complete",
        value=None if diverged_at else loss(STEPS),
        curve=[point(step, loss(step)) for step in range(0, last + 1, 12)],
        train=[point(step, 2.1 * loss(step) + own.gauss(0, 0.03)) for step in range(2, last + 1, 2)],
        tokens=tokens,
        flops=tokens * 6 * 4.3e6 * (1 + abs(effect)),
        seconds=tokens / speed,
        tokens_per_second=speed,
        peak_memory=int(1.31e9 * (1 + 3 * abs(effect))),
        parameters=4_312_064 + int(1e6 * abs(effect)),
        diverged_at=diverged_at,
    )


def example_comparison(
    names: Sequence[str] | int = 5,
    seeds: int = 3,
    *,
    diverged: Collection[tuple[int, int]] = (),
    tuned: bool = False,
    noise: float = 0.003,
    **changes: Any,
) -> Comparison:
    """Arms by name, or the first n of ``NAMES``; ``diverged`` are (arm index, seed)."""
    names = NAMES[:names] if isinstance(names, int) else names
    arms = []
    for index, name in enumerate(names):
        effect = EFFECTS[index % len(EFFECTS)]
        rates = [0.5, 1, 2]
        scores = [1.44 + effect + 0.02 * abs(math.log2(rate) - (index % 3 - 1)) for rate in rates]
        tuning = Tuning(
            chosen={"lr": rates[scores.index(min(scores))]},
            candidates=[Candidate(values={"lr": r}, score=s) for r, s in zip(rates, scores, strict=True)],
            seeds=[1_000_000],
        )
        techniques = name.split("+") if index else []
        arms.append(
            ArmResult(
                name=name,
                techniques=techniques,
                differences={f"model.slot{i}": ("rms-norm", t) for i, t in enumerate(techniques)},
                tuned=tuning if tuned else None,
                runs=[
                    _run(name, seed, effect, noise, 110 + 20 * seed if (index, seed) in diverged else None)
                    for seed in range(seeds)
                ],
            )
        )
    fields = {
        "title": "Norms and gates on a small decoder",
        "budget": {"tokens": STEPS * TOKENS_PER_STEP},
        "seeds": list(range(seeds)),
        "arms": compare_arms(arms),
        "data": {
            "corpus": "wikitext-103",
            "tokenizer": "bytes",
            "train_tokens": 98_304_000,
            "eval_bytes": 262_144,
            "sequence_length": 256,
            "batch_size": 16,
        },
        "hardware": {
            "machine": "x86_64",
            "processor": "AMD EPYC 9354 32-Core Processor",
            "cores": 2,
            "memory": 16 * 2**30,
            "system": "Linux 6.1.0",
        },
        "versions": {"assay": "0.1.0", "python": "3.11.9", "torch": "2.7.0", "numpy": "2.2.1"},
        "created": "2025-03-04T05:06:07Z",
        "seconds": 1234.5,
        "command": f"assay compare --arms {','.join(names)} --seeds {seeds} --tokens 983k --out norms",
    }
    return Comparison(**fields | changes)


@pytest.fixture(scope="session")
def example() -> Callable[..., Comparison]:
    return example_comparison
