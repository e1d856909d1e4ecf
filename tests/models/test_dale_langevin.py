"""Multiplicative diffusion: worked numbers, what it is in log x, and a law whose score is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from assay.errors import UserError
from assay.models.dale_langevin import MultiplicativeDiffusion, Sampler, log_normal_like

DIFFUSION = MultiplicativeDiffusion()
M, S = 0.3, 0.4


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_normal_score(x: Tensor, t: Tensor) -> Tensor:
    """Of data with log x ~ N(M, S²) at time t."""
    t = t.view(-1, 1)
    drift = DIFFUSION.drift - DIFFUSION.sigma**2 / 2
    return (-1 - (torch.log(x) - M - drift * t) / (S**2 + DIFFUSION.sigma**2 * t)) / x


def test_worked_numbers() -> None:
    """x_0 = 1.5, t = 0.25, z = 1: x_t = 2.237737, h = −3.5, s = −1.564080."""
    x0, t = tensor(1.5), torch.tensor([0.25], dtype=torch.float64)
    xt = DIFFUSION.noised(x0, t, tensor(1.0))
    assert xt.item() == pytest.approx(2.237737, abs=1e-6)
    target = DIFFUSION.target(xt, x0, t)
    assert target.item() == pytest.approx(-3.5, abs=1e-12)
    assert (target / xt).item() == pytest.approx(-1.564080, abs=1e-6)
    assert DIFFUSION.loss(lambda x, t: target / x, x0, t, tensor(1.0)).item() < 1e-24


@pytest.mark.parametrize(("sampler", "expected"), [("dale-langevin", 1.504055), ("unconstrained", 1.494036)])
def test_a_worked_step(sampler: Sampler, expected: float) -> None:
    step = DIFFUSION.step(tensor(2.0), tensor(-1.5), 0.1, tensor(-1.0), sampler)
    assert step.item() == pytest.approx(expected, abs=1e-6)


def test_the_loss_has_its_weight_built_in() -> None:
    """Written out: (σ²t x s + log x_t − log x_0 − μt + 3/2 σ²t)², also where μ is not σ²/2."""
    diffusion = MultiplicativeDiffusion(0.7, 0.1)
    x0, t, z = draw(6, 3).exp(), torch.linspace(0.1, 1, 6, dtype=torch.float64), draw(6, 3, seed=1)
    xt = diffusion.noised(x0, t, z)
    terms = 0.49 * t[:, None] * xt * torch.sin(xt) + xt.log() - x0.log() - 0.1 * t[:, None] + 0.735 * t[:, None]
    found = diffusion.loss(lambda x, _: torch.sin(x), x0, t, z)
    torch.testing.assert_close(found, terms.square().sum(1).mean(), rtol=1e-12, atol=0)


def test_a_dale_langevin_step_is_euler_maruyama_in_log_x() -> None:
    """The score of log x is 1 + x · s: y ← y + δ (σ² (1 + x s) − μ + σ²/2) + √δ σ z."""
    x, modulated, z = draw(50, 1).exp(), draw(50, 1, seed=1), draw(50, 1, seed=2)
    for diffusion in (DIFFUSION, MultiplicativeDiffusion(0.5, 0.3)):
        variance = diffusion.sigma**2
        y = x.log() + 0.01 * (variance * (1 + modulated) - diffusion.drift + variance / 2)
        y = y + 0.1 * diffusion.sigma * z
        torch.testing.assert_close(diffusion.step(x, modulated, 0.01, z), y.exp(), rtol=1e-12, atol=0)


def test_signs_are_kept_by_one_sampler_alone() -> None:
    x, modulated, z = draw(2000, 1), 5 * draw(2000, 1, seed=1), draw(2000, 1, seed=2)
    assert torch.equal(DIFFUSION.step(x, modulated, 0.5, z).sign(), x.sign())
    assert not torch.equal(DIFFUSION.step(x, modulated, 0.5, z, "unconstrained").sign(), x.sign())


def test_the_scale_of_the_data_does_not_matter() -> None:
    """With s(c x) = s(x) / c noise, loss and samples of data c times as large are those of the data itself."""
    x0, t, z = draw(5, 2).exp(), torch.full((5,), 0.4, dtype=torch.float64), draw(5, 2, seed=1)
    torch.testing.assert_close(DIFFUSION.noised(7 * x0, t, z), 7 * DIFFUSION.noised(x0, t, z))
    losses = [DIFFUSION.loss(lambda x, t, c=c: log_normal_score(x / c, t) / c, c * x0, t, z) for c in (1.0, 7.0)]
    torch.testing.assert_close(losses[0], losses[1])
    ends = [
        DIFFUSION.sample(
            lambda x, t, c=c: log_normal_score(x / c, t) / c,
            c * x0,
            steps=9,
            generator=torch.Generator().manual_seed(0),
        )
        for c in (1.0, 7.0)
    ]
    torch.testing.assert_close(7 * ends[0], ends[1])


@pytest.mark.parametrize("sampler", ["dale-langevin", "unconstrained"])
def test_the_reverse_process_ends_in_the_data(sampler: Sampler) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.exp(M + S * torch.randn(40_000, 1, generator=generator, dtype=torch.float64))
    ones = torch.ones(len(data), dtype=torch.float64)
    start = DIFFUSION.noised(data, ones, torch.randn(data.shape, generator=generator, dtype=torch.float64))
    end = DIFFUSION.sample(log_normal_score, start, steps=250, sampler=sampler, generator=generator)
    assert end.log().mean().item() == pytest.approx(M, abs=0.01)
    assert end.log().std().item() == pytest.approx(S, abs=0.01)


def test_the_loss_is_explicit_score_matching_and_a_constant() -> None:
    """M-DSM − M-ESM, without the weight, is 1 / (σ²t) − 1 / (S² + σ²t) for every s: 3.125 at t = 1/4."""
    x0, z = torch.exp(M + S * draw(200_000, 1)), draw(200_000, 1, seed=1)
    t = torch.full((len(x0),), 0.25, dtype=torch.float64)
    weight = (DIFFUSION.sigma**2 * 0.25) ** 2
    xt = DIFFUSION.noised(x0, t, z)
    scores = (log_normal_score, lambda x, t: -1 / x, lambda x, t: torch.sin(x))
    for score in scores:
        explicit = (xt * (score(xt, t) - log_normal_score(xt, t))).square().mean()
        assert (DIFFUSION.loss(score, x0, t, z) / weight - explicit).item() == pytest.approx(3.125, abs=0.05)


def test_the_loss_teaches_the_score() -> None:
    """A line fitted by M-DSM to x · s over log x has the slope and offset of the law at that time."""
    line = nn.Linear(1, 1, dtype=torch.float64)
    x0, z = torch.exp(M + S * draw(20_000, 1)), draw(20_000, 1, seed=1)
    t = torch.full((len(x0),), 0.5, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(line.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = DIFFUSION.loss(lambda x, _: line(x.log()) / x, x0, t, z)
        loss.backward()
        return loss

    optimizer.step(closure)
    variance = S**2 + DIFFUSION.sigma**2 * 0.5
    assert line.weight.item() == pytest.approx(-1 / variance, abs=0.05)
    assert line.bias.item() == pytest.approx(-1 + M / variance, abs=0.05)


def test_annealing_and_repeats() -> None:
    """Without noise after the first time, the path is the drift alone; two repeats of half a step are two steps."""
    x0, zero = draw(4, 2).exp(), lambda x, t: torch.zeros_like(x)
    end = DIFFUSION.sample(zero, x0, steps=4, delta=0.1, repeats=3, annealing=0.0, generator=torch.Generator())
    generator = torch.Generator()
    noise = sum(torch.randn(4, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    rate = 1.5 * DIFFUSION.sigma**2 - DIFFUSION.drift
    expected = x0 * torch.exp(12 * 0.1 * rate + math.sqrt(0.1) * DIFFUSION.sigma * noise)
    torch.testing.assert_close(end, expected)


def test_the_start_has_the_data_s_logarithms() -> None:
    x = torch.exp(0.7 + 0.2 * draw(400, 6))
    logs = log_normal_like(x, 3000, torch.Generator().manual_seed(0)).log()
    assert logs.shape == (3000, 6)
    assert logs.mean().item() == pytest.approx(x.log().mean().item(), abs=0.01)
    assert logs.std().item() == pytest.approx(x.log().std().item(), abs=0.01)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"sigma=0 .* above 0"):
        MultiplicativeDiffusion(0)
    with pytest.raises(UserError, match="needs positive data"):
        DIFFUSION.noised(tensor(1.0, 0.0), torch.ones(2), torch.zeros(2, 1))
    with pytest.raises(UserError, match="steps=0 and repeats=1"):
        DIFFUSION.sample(log_normal_score, tensor(1.0), steps=0)
