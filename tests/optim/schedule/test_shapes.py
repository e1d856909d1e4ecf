"""Shapes at worked points; warmup-stable-decay and cosine against transformers' and torch's schedules."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup, get_wsd_schedule

from assay.errors import UserError
from assay.optim import schedules
from assay.optim.schedule.cosine import Cosine
from assay.optim.schedule.shapes import Shape, check_end, decayed
from assay.optim.schedule.warmup_stable_decay import WarmupStableDecay

SHAPES: tuple[Shape, ...] = get_args(Shape)
rate = st.floats(1e-6, 1)


@given(st.sampled_from(SHAPES), st.floats(0, 1), st.floats(0, 1), rate, rate)
def test_every_shape_falls_from_start_to_end(shape: Shape, u: float, v: float, one: float, two: float) -> None:
    start, end = max(one, two), min(one, two)
    assert decayed(shape, 0.0, start, end) == pytest.approx(start)
    assert decayed(shape, 1.0, start, end) == pytest.approx(end)
    earlier, later = (decayed(shape, share, start, end) for share in sorted((u, v)))
    assert end - 1e-12 <= later <= earlier + 1e-12 <= start + 2e-12
    assert decayed(shape, u, start, start) == pytest.approx(start)


def test_inverse_at_worked_points() -> None:
    found = [decayed("inverse", u, 1e-3, 1e-4) for u in (0.25, 0.5, 0.75, 1.0)]
    assert found == pytest.approx([3.0769231e-4, 1.8181818e-4, 1.2903226e-4, 1e-4], rel=1e-7)
    inverses = [1 / decayed("inverse", i / 8, 1e-3, 1e-4) for i in range(9)]
    steps = [b - a for a, b in itertools.pairwise(inverses)]
    assert steps == pytest.approx([9000 / 8] * 8)


def test_one_minus_root_at_worked_points() -> None:
    deep = [decayed("1-sqrt", r, 3e-3, 1e-5) for r in (0.25, 0.5, 1.0)]
    assert deep == pytest.approx([1.505e-3, 8.857507e-4, 1e-5], rel=1e-6)
    moderate = [decayed("1-sqrt", r, 3e-3, 1e-3) for r in (0.25, 0.5, 1.0)]
    assert moderate == pytest.approx([2.0e-3, 1.585786e-3, 1e-3], rel=1e-6)


def test_exponential_and_cosine_have_the_geometric_and_the_arithmetic_mean_half_way() -> None:
    assert decayed("exponential", 0.5, 1.65e-4, 3e-5) == pytest.approx(7.0356e-5, rel=1e-5)
    assert decayed("cosine", 0.5, 3e-4, 3e-5) == pytest.approx(1.65e-4)


def test_inverse_root_falls_steeply_first() -> None:
    """h(0.3) = 1/√4 − 1 and h(1) = 1/√11 − 1."""
    assert decayed("inverse-sqrt", 0.3, 1.0, 0.0) == pytest.approx(1 - 0.5 / (1 - 1 / math.sqrt(11)))


def test_the_inverse_shape_is_the_greedy_optimum_of_noisy_descent() -> None:
    """On h x²/2 with gradient noise s², η = h v / (h² v + s²) leaves the least E x²; its inverse is affine in t."""
    h, s2, v = 2.0, 0.5, 3.0
    rates = []
    for _ in range(11):
        rates.append(h * v / (h * h * v + s2))
        last = v
        v = (1 - rates[-1] * h) ** 2 * v + rates[-1] ** 2 * s2
    assert last == pytest.approx(0.01244813, rel=1e-6)
    shaped = [decayed("inverse", t / 10, rates[0], rates[10]) for t in range(11)]
    assert shaped == pytest.approx(rates, rel=1e-12)


def test_constant_rate_noise_is_the_stationary_variance() -> None:
    """η s² / (h (2 − η h)): what a decay has to bring down, here against 200,000 simulated steps."""
    h, s2, lr = 2.0, 0.5, 0.1
    noise = torch.randn(2000, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * s2**0.5
    x = torch.zeros(1000, dtype=torch.float64)
    seen = []
    for step, drawn in enumerate(noise):
        x = x - lr * (h * x + drawn)
        if step >= 100:
            seen.append(x.square().mean())
    assert torch.stack(seen).mean().item() == pytest.approx(0.0138889, rel=0.02)


def factors(scheduler: torch.optim.lr_scheduler.LambdaLR, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_warmup_stable_decay_against_transformers(shape: Shape, final: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_wsd_schedule(
        optimizer,
        num_warmup_steps=20,
        num_decay_steps=40,
        num_training_steps=200,
        decay_type=shape,
        min_lr_ratio=final,
    )
    ours = WarmupStableDecay(warmup=0.1, decay=0.2, final=final, shape=shape)
    warmed = 20 if final else 0  # theirs warms up from the floor
    expected = factors(theirs, 200)[warmed:]
    assert [ours(step / 200) for step in range(warmed, 200)] == pytest.approx(expected, abs=1e-7)


def test_cosine_against_transformers_and_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, 10, 200)
    ours = Cosine(warmup=0.05, final=0.0)
    assert [ours(step / 200) for step in range(200)] == pytest.approx(factors(theirs, 200), abs=1e-12)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200, eta_min=3e-5)
    rates = [3e-4 * Cosine(warmup=0.0, final=0.1)(step / 200) for step in range(200)]
    assert rates == pytest.approx(factors(annealing, 200), rel=1e-9)  # type: ignore[arg-type]


def test_exponential_against_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1 ** (1 / 50))
    assert [decayed("exponential", i / 50, 1.0, 0.1) for i in range(50)] == pytest.approx(
        factors(theirs, 50),  # type: ignore[arg-type]
        rel=1e-9,
    )


def test_a_shape_that_never_reaches_zero_is_not_asked_to() -> None:
    for shape in SHAPES:
        if shape in ("inverse", "exponential"):
            with pytest.raises(UserError, match=f"the shape '{shape}' never reaches final=0; give final above 0"):
                WarmupStableDecay(shape=shape)
        else:
            check_end("any", shape, "final", 0.0)
    with pytest.raises(UserError, match="option shape='lineal'"):
        schedules.build("warmup-stable-decay", {"shape": "lineal"})
