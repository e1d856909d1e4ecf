from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.errors import UserError
from assay.nn.norm import norms
from assay.nn.norm.care_bn import CaReBN, PooledStatistics, confident_update, fold, recalibrate


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(hidden: int, seed: int = 0) -> CaReBN:
    norm = CaReBN(hidden).double()
    values = [draw(hidden, seed=seed + i) for i in range(4)]
    with torch.no_grad():
        for place, value in zip((norm.weight, norm.bias, norm.moving_mean), values, strict=False):
            place.copy_(value)
        norm.moving_var.copy_(values[3].square() + 0.1)
    return norm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Linear(5, 6), nn.Linear(6, 4)
    return nn.Sequential(first, trained(6, 1), nn.ReLU(), nn.Dropout(0.5), second, trained(4, 7)).double()


def matched(norm: CaReBN) -> nn.BatchNorm1d:
    theirs = nn.BatchNorm1d(norm.weight.numel(), eps=norm.eps).double()
    with torch.no_grad():
        theirs.weight.copy_(norm.weight)
        theirs.bias.copy_(norm.bias)
        theirs.running_mean.copy_(norm.moving_mean)
        theirs.running_var.copy_(norm.moving_var)
    return theirs


def alternating(mean: float, deviation: float, samples: int) -> Tensor:
    """A batch of exactly this mean and biased variance."""
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(samples // 2)
    return (mean + deviation * signs)[:, None]


def test_two_worked_steps() -> None:
    norm, x = CaReBN(1).double().train(), alternating(2.0, 2.0, 256)
    expected = [(1.961538, 3.804481), (1.999080, 3.984403)]
    for mean, variance in expected:
        norm(x)
        assert norm.moving_mean.item() == pytest.approx(mean, abs=1e-6)
        assert norm.moving_var.item() == pytest.approx(variance, abs=1e-6)


def test_two_worked_gains() -> None:
    moving, error, gains = torch.zeros(1), torch.zeros(1), []
    for _ in range(2):
        moved, error = confident_update(moving, error, torch.tensor([2.0]), torch.tensor([4 / 255]), 0.8)
        gains.append(((moved - moving) / (2 - moving)).item())
        moving = moved
    assert gains == pytest.approx([0.980769, 0.976087], abs=1e-6)


def by_hand(stream: list[Tensor], rho: float) -> list[tuple[float, float]]:
    """The recursion with Python's own numbers for one feature; each batch is [samples, steps]."""
    m, v, p_m, p_v, found = 0.0, 1.0, 0.0, 0.0, []
    for batch in stream:
        values = batch.flatten().tolist()
        mu = sum(values) / len(values)
        s2 = sum((value - mu) ** 2 for value in values) / len(values)
        p_m = rho * p_m + (1 - rho) * (mu - m) ** 2
        p_v = rho * p_v + (1 - rho) * (s2 - v) ** 2
        m += p_m / (p_m + s2 / (len(batch) - 1)) * (mu - m)
        v += p_v / (p_v + 2 * s2**2 / (len(batch) - 1)) * (s2 - v)
        found.append((m, v))
    return found


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), rho=st.floats(0, 0.95), samples=st.integers(2, 6), steps=st.integers(1, 4))
def test_a_stream_follows_the_recursion(seed: int, rho: float, samples: int, steps: int) -> None:
    norm = CaReBN(3, rho=rho).double().train()
    stream = [3 * draw(samples, steps, 3, seed=seed + i) + i for i in range(4)]
    traces = [by_hand([batch[..., feature] for batch in stream], rho) for feature in range(3)]
    for step, batch in enumerate(stream):
        norm(batch)
        means, variances = zip(*(trace[step] for trace in traces), strict=True)
        torch.testing.assert_close(norm.moving_mean.tolist(), list(means), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(norm.moving_var.tolist(), list(variances), rtol=1e-8, atol=1e-8)


def test_updating_normalises_as_torch_in_training() -> None:
    ours = trained(4).train()
    theirs = matched(ours).train()
    x, towards = draw(6, 5, 4, seed=9), draw(6, 5, 4, seed=10)
    results = []
    for norm, shape in ((ours, (6, 5, 4)), (theirs, (30, 4))):
        leaf = x.reshape(shape).requires_grad_()
        y = norm(leaf)
        y.backward(towards.reshape(shape))
        results.append((y.reshape(6, 5, 4), leaf.grad.reshape(6, 5, 4), norm.weight.grad, norm.bias.grad))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_inference_is_torch_in_evaluation_and_changes_nothing() -> None:
    norm, x = trained(4).eval(), draw(6, 5, 4, seed=9)
    state = copy.deepcopy(norm.state_dict())
    expected = matched(norm).eval()(x.reshape(30, 4)).reshape(6, 5, 4)
    torch.testing.assert_close(norm(x), expected, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(norm.state_dict()[name], state[name]) for name in state)


@pytest.mark.parametrize("bias", [True, False])
def test_folded_into_the_linear_layer_before(bias: bool) -> None:
    linear, norm, x = nn.Linear(3, 4, bias=bias).double(), trained(4).eval(), draw(5, 3)
    folded = fold(linear, norm)
    assert folded.weight.dtype == torch.float64
    torch.testing.assert_close(folded(x), norm(linear(x)), rtol=1e-10, atol=1e-10)


def test_only_neighbours_fold() -> None:
    with pytest.raises(UserError, match="4 features does not follow 3 outputs"):
        fold(nn.Linear(2, 3), CaReBN(4))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.01, 100), seed=st.integers(0, 2**31))
def test_the_gain_has_no_units_and_lies_between_0_and_1(scale: float, seed: int) -> None:
    moving, error, measured, noise = (draw(6, seed=seed + i) for i in range(4))
    error, noise = error.square(), noise.square() + 1e-3
    moved, _ = confident_update(moving, error, measured, noise, 0.8)
    share = (moved - moving) / (measured - moving)
    assert ((share >= 0) & (share <= 1)).all()
    scaled, _ = confident_update(scale * moving, scale**2 * error, scale * measured, scale**2 * noise, 0.8)
    torch.testing.assert_close(scaled, scale * moved, rtol=1e-9, atol=1e-9)


def test_without_noise_the_statistic_is_the_batch_and_without_error_it_stays() -> None:
    moving, measured, zero = draw(4), draw(4, seed=1), torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(confident_update(moving, zero, measured, zero, 0.8)[0], measured)
    torch.testing.assert_close(confident_update(moving, zero, measured, measured.square(), 1.0)[0], moving)


def test_a_dead_feature_stays_finite() -> None:
    norm = CaReBN(2).train()
    for _ in range(3):
        assert norm(torch.zeros(4, 2)).isfinite().all()
    assert all(value.isfinite().all() for value in norm.state_dict().values())
    assert norm.moving_mean.tolist() == [0, 0]


def test_pooling_is_the_statistics_of_everything() -> None:
    parts = [draw(n, 3, seed=n) * n for n in (4, 1, 9)]
    pool = PooledStatistics()
    for part in parts:
        pool.add(len(part), part.mean(0), part.var(0, correction=0))
    whole = torch.cat(parts)
    assert pool.count == 14
    torch.testing.assert_close(pool.mean, whole.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pool.variance, whole.var(0, correction=0), rtol=1e-12, atol=1e-12)


def test_recalibrated_layers_have_the_statistics_of_the_replay() -> None:
    """The second layer's inputs are those that the first normalised by what was pooled so far."""
    model = network().train()
    state = copy.deepcopy(model.state_dict())
    batches = [draw(n, 5, seed=n) + n for n in (8, 3, 6)]
    recalibrate(model, batches)
    inputs = torch.cat([model[0](batch) for batch in batches])
    torch.testing.assert_close(model[1].moving_mean, inputs.mean(0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model[1].moving_var, inputs.var(0, correction=0), rtol=1e-10, atol=1e-10)
    deeper = []
    for end in range(1, 4):
        seen = torch.cat([model[0](batch) for batch in batches[:end]])
        hat = (model[0](batches[end - 1]) - seen.mean(0)) / (seen.var(0, correction=0) + 1e-5).sqrt()
        deeper.append(model[4](torch.relu(model[1].weight * hat + model[1].bias)))
    inputs = torch.cat(deeper)
    torch.testing.assert_close(model[5].moving_mean, inputs.mean(0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model[5].moving_var, inputs.var(0, correction=0), rtol=1e-10, atol=1e-10)
    moved = {name for name in state if not torch.equal(state[name], model.state_dict()[name])}
    assert moved == {f"{layer}.moving_{kind}" for layer in (1, 5) for kind in ("mean", "var")}
    assert all(module.training for module in model.modules())


def test_recalibrating_twice_changes_nothing() -> None:
    model, batches = network().eval(), [draw(8, 5, seed=n) + n for n in range(3)]
    recalibrate(model, batches)
    state = copy.deepcopy(model.state_dict())
    recalibrate(model, batches)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    assert not any(module.training for module in model.modules())


def test_a_failed_recalibration_leaves_the_model_as_it_was() -> None:
    model = network().train()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        recalibrate(model, [draw(8, 5), draw(8, 4)])
    with pytest.raises(UserError, match="there is no batch"):
        recalibrate(model, [])
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    assert all(module.training for module in model.modules())
    before = model[1].moving_mean.clone()
    model(draw(8, 5))
    assert not torch.equal(model[1].moving_mean, before)


def test_recalibration_needs_a_layer() -> None:
    with pytest.raises(UserError, match="no CaRe-BN layer"):
        recalibrate(nn.Linear(2, 2), [draw(1, 2)])


def test_starts() -> None:
    plain, spiking = norms.build("care-bn", hidden_size=2), norms.build("care-bn", {"threshold": 0.5}, hidden_size=2)
    assert [plain.weight.tolist(), plain.bias.tolist()] == [[1, 1], [0, 0]]
    assert [spiking.weight.tolist(), spiking.bias.tolist()] == [[0.25, 0.25], [0.25, 0.25]]
    buffers = {"moving_mean": 0.0, "moving_var": 1.0, "mean_error": 0.0, "var_error": 0.0}
    assert {name: value[0].item() for name, value in plain.named_buffers()} == buffers
    assert buffers.keys() <= plain.state_dict().keys()


def test_a_single_vector_is_one_sample() -> None:
    norm = CaReBN(3).train()
    assert torch.equal(norm(torch.tensor([1.0, 2.0, 3.0])), torch.zeros(3))
    torch.testing.assert_close(norm.moving_mean, torch.tensor([1.0, 2.0, 3.0]))
