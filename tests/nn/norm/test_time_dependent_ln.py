from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.errors import UserError
from assay.models import ModelConfig
from assay.models.decoder import Decoder
from assay.nn.norm import norms
from assay.nn.norm.time_dependent_ln import (
    TimeDependentLN,
    TimeDependentNorm,
    TimeDependentParameter,
    TimeDependentRMSNorm,
    diffusion_time,
    vp_log_snr,
)
from assay.optim.groups import parameter_groups

KINDS = {"time-dependent-ln": TimeDependentLN, "time-dependent-rms-norm": TimeDependentRMSNorm}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    module = module.double()
    for i, parameter in enumerate(module.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=seed + i))
    return module


@pytest.mark.parametrize(("log_snr", "expected"), [(0.0, 1.5), (4.0, 1.7311), (-8.0, 1.1192)])
def test_worked_numbers(log_snr: float, expected: float) -> None:
    norm = TimeDependentLN(2, eps=0.0)
    norm.gain.early.data.fill_(2.0)
    y = norm(torch.tensor([[5.0, 3.0]]), torch.tensor([log_snr]))
    torch.testing.assert_close(y, torch.tensor([[expected, -expected]]), atol=1e-4, rtol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), samples=st.integers(2, 4))
def test_is_the_definition_one_value_at_a_time(seed: int, samples: int) -> None:
    x, log_snr = draw(samples, 3, 4, seed=seed), 4 * draw(samples, seed=seed + 1)
    layer, root = randomise(TimeDependentLN(4), seed + 2), randomise(TimeDependentRMSNorm(4), seed + 9)
    shown = {"layer": layer(x, log_snr), "root": root(x, log_snr)}

    def at(parameter: TimeDependentParameter, time: float, i: int) -> float:
        early, late, slope, offset = (p[i].item() for p in parameter.parameters())
        gate = 1 / (1 + math.exp(-((1 + slope) * time / 4 + offset)))
        return gate * early + (1 - gate) * late

    for sample in range(samples):
        time = log_snr[sample].item()
        for token in range(3):
            values = x[sample, token].tolist()
            mean = sum(values) / 4
            deviation = (sum((value - mean) ** 2 for value in values) / 4 + 1e-5) ** 0.5
            rms = (sum(value**2 for value in values) / 4) ** 0.5
            for i, value in enumerate(values):
                by_layer = at(layer.gain, time, i) * (value - mean) / deviation + at(layer.bias, time, i)
                by_root = at(root.gain, time, i) * value / (rms + 1e-8)
                assert shown["layer"][sample, token, i].item() == pytest.approx(by_layer, rel=1e-8, abs=1e-9)
                assert shown["root"][sample, token, i].item() == pytest.approx(by_root, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_it_is_torch_at_every_time(kind: str) -> None:
    x = draw(5, 3, 8)
    theirs = {"time-dependent-ln": nn.LayerNorm(8), "time-dependent-rms-norm": nn.RMSNorm(8, eps=0.0)}[kind]
    y = norms.build(kind, hidden_size=8).double()(x, 10 * draw(5, seed=1))
    torch.testing.assert_close(y, theirs.double()(x), rtol=1e-7, atol=1e-7)


def test_eps_stands_outside_of_the_root_of_the_rms_norm() -> None:
    x = torch.tensor([[3.0, -3.0]], dtype=torch.float64)
    torch.testing.assert_close(TimeDependentRMSNorm(2, eps=1.0).double()(x), x / 4)
    assert torch.equal(TimeDependentRMSNorm(2)(torch.zeros(1, 2)), torch.zeros(1, 2))


def test_at_the_start_the_gate_has_no_gradient_and_the_copies_share_the_gain_s() -> None:
    x, towards, log_snr = draw(4, 3, 6), draw(4, 3, 6, seed=1), 3 * draw(4, seed=2)
    norm, plain = TimeDependentLN(6).double(), nn.LayerNorm(6).double()
    norm(x, log_snr).backward(towards)
    plain(x).backward(towards)
    for ours, theirs in ((norm.gain, plain.weight), (norm.bias, plain.bias)):
        torch.testing.assert_close(ours.early.grad + ours.late.grad, theirs.grad, rtol=1e-10, atol=1e-12)
        assert torch.equal(ours.slope.grad, torch.zeros(6, dtype=torch.float64))
        assert torch.equal(ours.offset.grad, torch.zeros(6, dtype=torch.float64))
    one = TimeDependentLN(6).double()
    one(x, torch.tensor([2.0]).double()).backward(towards)
    ratio = torch.full((6,), math.exp(2 / 4), dtype=torch.float64)
    torch.testing.assert_close(one.gain.early.grad / one.gain.late.grad, ratio)


def test_gradients_are_those_of_the_formula() -> None:
    parameter, c, g = randomise(TimeDependentParameter(5, 0.0)), draw(7, seed=9), draw(7, 5, seed=10)
    parameter(c).backward(g)
    m = torch.sigmoid((1 + parameter.slope) * c[:, None] + parameter.offset).detach()
    da = (parameter.early - parameter.late).detach() * g * m * (1 - m)
    expected = {"early": m * g, "late": (1 - m) * g, "slope": da * c[:, None], "offset": da}
    for name, value in expected.items():
        torch.testing.assert_close(getattr(parameter, name).grad, value.sum(0), rtol=1e-10, atol=1e-12)


def test_limits_bounds_and_a_closed_gate() -> None:
    parameter = randomise(TimeDependentParameter(6, 0.0))
    parameter.slope.data.abs_()
    ends = parameter(torch.tensor([1e4, -1e4]).double())
    torch.testing.assert_close(ends, torch.stack([parameter.early, parameter.late]))
    between = parameter(5 * draw(50, seed=3))
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    assert ((between >= low - 1e-12) & (between <= high + 1e-12)).all()
    parameter.slope.data.fill_(-1.0)
    assert torch.equal(*parameter(torch.tensor([-3.0, 2.0]).double()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6), (4, 2, 3, 6)])
def test_samples_at_their_own_times_are_samples_one_by_one(kind: str, shape: tuple[int, ...]) -> None:
    norm, x, log_snr = randomise(KINDS[kind](6)), draw(*shape), 4 * draw(4, seed=1)
    apart = [norm(x[i : i + 1], log_snr[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(norm(x, log_snr), torch.cat(apart), rtol=1e-10, atol=1e-12)
    same = norm(x, log_snr[:1].expand(4))
    torch.testing.assert_close(norm(x, log_snr[0]), same, rtol=1e-10, atol=1e-12)
    assert (norm(x, log_snr) - same).abs().max() > 1e-3


def test_a_number_of_times_that_fits_nothing_is_one_line() -> None:
    with pytest.raises(UserError, match="3 diffusion times for 4 samples"):
        TimeDependentLN(2)(torch.zeros(4, 2), torch.zeros(3))


def test_log_snr_of_the_variance_preserving_process() -> None:
    """SNR is signal power over noise power where dx = −β/2 x dt + √β dw, here with 10⁵ small steps."""
    steps = 100_000
    signal, noise, found = 1.0, 0.0, {}
    for step in range(steps):
        beta = (0.1 + 19.9 * (step + 0.5) / steps) / steps
        signal, noise = signal * (1 - beta), noise * (1 - beta) + beta
        found[step + 1] = math.log(signal / noise)
    times = [20_000, 50_000, 80_000]
    expected = torch.tensor([found[time] for time in times])
    torch.testing.assert_close(vp_log_snr(torch.tensor(times) / steps), expected, rtol=1e-3, atol=1e-3)
    ends = vp_log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([math.log(1e6), -math.log(math.expm1(10.05))]).double())


def test_a_network_is_given_its_time() -> None:
    model, x = randomise(nn.Sequential(TimeDependentLN(6), nn.Linear(6, 6), TimeDependentRMSNorm(6))), draw(4, 3, 6)
    log_snr = 4 * draw(4, seed=1)
    with diffusion_time(model, log_snr):
        y = model(x)
        with diffusion_time(model, -log_snr):
            assert (model(x) - y).abs().max() > 1e-3
        assert torch.equal(model(x), y)
    assert torch.equal(y, model[2](model[1](model[0](x, log_snr)), log_snr))
    assert torch.equal(model(x), model[2](model[1](model[0](x, torch.zeros(1))), torch.zeros(1)))
    with pytest.raises(UserError, match="no time-dependent norm"), diffusion_time(nn.Linear(2, 2), log_snr):
        pass


def test_the_time_is_taken_back_when_something_fails() -> None:
    model = TimeDependentLN(3)
    with pytest.raises(RuntimeError), diffusion_time(model, torch.zeros(2)):
        raise RuntimeError
    assert model.log_snr is None


def test_decay_reaches_the_copies_but_not_the_gate() -> None:
    norm = TimeDependentLN(3)
    decayed = {id(p) for group in parameter_groups(norm) if group["decay"] for p in group["params"]}
    copies = {id(p) for part in (norm.gain, norm.bias) for p in (part.early, part.late)}
    assert decayed == copies


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_without_a_time_has_the_plain_norm(kind: str) -> None:
    sizes = {"depth": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 11, "max_length": 8}
    plain = {"time-dependent-ln": "layer-norm", "time-dependent-rms-norm": {"name": "rms-norm", "eps": 0.0}}[kind]
    ids = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(0))
    logits = []
    for norm in (kind, plain):
        torch.manual_seed(0)
        decoder = Decoder(ModelConfig.model_validate({**sizes, "norm": norm}))
        logits.append(decoder(ids))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_parameters_per_gain() -> None:
    assert sum(p.numel() for p in TimeDependentLN(7).parameters()) == 8 * 7
    assert sum(p.numel() for p in TimeDependentRMSNorm(7).parameters()) == 4 * 7
    assert issubclass(TimeDependentLN, TimeDependentNorm)
