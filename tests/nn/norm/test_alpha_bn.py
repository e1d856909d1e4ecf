from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.errors import UserError
from assay.models import ModelConfig
from assay.models.decoder import Decoder
from assay.nn.norm import norms
from assay.nn.norm.alpha_bn import (
    AlphaBatchNorm,
    AlphaBN,
    affine_parameters,
    alpha_bn,
    class_correlation,
    core_step,
    mixed_batch_norm,
)

ZERO, ONE = torch.zeros(1), torch.ones(1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(norm: nn.Module, channels: int, seed: int = 0) -> nn.Module:
    """The norm in float64 with parameters and statistics that differ from their starts."""
    norm = norm.double()
    norm.weight.data.copy_(draw(channels, seed=seed + 1))
    norm.bias.data.copy_(draw(channels, seed=seed + 2))
    norm.running_mean.copy_(draw(channels, seed=seed + 3))
    norm.running_var.copy_(draw(channels, seed=seed + 4).square() + 0.1)
    return norm


def network() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), trained(nn.BatchNorm2d(4), 4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(body, nn.Linear(64, 6), trained(nn.BatchNorm1d(6), 6), nn.ReLU(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize(
    ("source_weight", "expected"),
    [
        (0.5, [-0.5773, 0.5773, 1.7320, 2.8867]),
        (0.9, [0.5071, 2.1974, 3.8877, 5.5780]),
        (0.0, [-1.3416, -0.4472, 0.4472, 1.3416]),
        (1.0, [1.0, 3.0, 5.0, 7.0]),
    ],
)
def test_worked_numbers(source_weight: float, expected: list[float]) -> None:
    x = torch.tensor([[1.0], [3.0], [5.0], [7.0]])
    y = mixed_batch_norm(x, ZERO, ONE, ONE, ZERO, source_weight=source_weight, eps=1e-5)
    torch.testing.assert_close(y[:, 0], torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
@pytest.mark.parametrize("training", [False, True])
def test_the_ends_are_torch_in_evaluation_and_in_training(kind: type[nn.Module], training: bool) -> None:
    norm = trained(kind(3), 3)
    x = draw(5, 3, *{nn.BatchNorm1d: (4,), nn.BatchNorm2d: (4, 2), nn.BatchNorm3d: (2, 3, 2)}[kind], seed=9)
    before = copy.deepcopy(norm.state_dict())
    mixed = [alpha_bn(norm, end).train(training)(x) for end in (1.0, 0.0)]
    assert all(torch.equal(norm.state_dict()[name], before[name]) for name in before)
    torch.testing.assert_close(mixed[0], norm.eval()(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mixed[1], norm.train()(x), rtol=1e-10, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), source_weight=st.floats(0, 1), batch=st.integers(1, 6))
def test_is_the_definition_one_channel_at_a_time(seed: int, source_weight: float, batch: int) -> None:
    norm = trained(nn.BatchNorm2d(3, eps=1e-2), 3, seed)
    x = draw(batch, 3, 2, 2, seed=seed + 9)
    y = alpha_bn(norm, source_weight)(x)
    for channel in range(3):
        values = x[:, channel].flatten().tolist()
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        mean = source_weight * norm.running_mean[channel].item() + (1 - source_weight) * mean
        variance = source_weight * norm.running_var[channel].item() + (1 - source_weight) * variance
        gain, bias = norm.weight[channel].item(), norm.bias[channel].item()
        expected = [gain * (value - mean) / (variance + 1e-2) ** 0.5 + bias for value in values]
        torch.testing.assert_close(y[:, channel].flatten().tolist(), expected, rtol=1e-8, atol=1e-8)


def test_the_weight_does_not_matter_where_batch_and_source_agree() -> None:
    norm, x = trained(nn.BatchNorm1d(4), 4), draw(7, 4, seed=5)
    norm.running_mean.copy_(x.mean(0))
    norm.running_var.copy_(x.var(0, correction=0))
    torch.testing.assert_close(alpha_bn(norm, 0.2)(x), alpha_bn(norm, 0.9)(x), rtol=1e-10, atol=1e-12)


def test_a_shift_of_the_input_is_taken_out_but_for_alpha() -> None:
    norm, x, shift = trained(nn.BatchNorm1d(4), 4), draw(7, 4, seed=5), 3.0
    variance = 0.7 * norm.running_var + 0.3 * x.var(0, correction=0)
    left = 0.7 * norm.weight * shift / (variance + norm.eps).sqrt()
    layer = alpha_bn(norm, 0.7)
    torch.testing.assert_close(layer(x + shift) - layer(x), left.expand(7, 4), rtol=1e-9, atol=1e-10)


def test_a_network_is_copied_and_every_batch_norm_converted() -> None:
    model, x = network().train(), draw(9, 1, 6, 6, seed=3)
    state = copy.deepcopy(model.state_dict())
    mixed = alpha_bn(model, 1.0)
    assert [type(module) for module in model.modules()].count(AlphaBatchNorm) == 0
    assert [type(module) for module in mixed.modules()].count(AlphaBatchNorm) == 2
    torch.testing.assert_close(mixed(x), copy.deepcopy(model).eval()(x), rtol=1e-9, atol=1e-9)
    by_batch = alpha_bn(mixed, 0.0)
    assert [module.source_weight for module in by_batch.modules() if isinstance(module, AlphaBatchNorm)] == [0, 0]
    torch.testing.assert_close(by_batch(x), copy.deepcopy(model)(x), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)


def test_a_layer_used_twice_is_one_layer() -> None:
    shared = trained(nn.BatchNorm1d(4), 4)
    block = nn.Sequential(shared)
    mixed = alpha_bn(nn.Sequential(block, shared, block), 0.3)
    assert mixed[0][0] is mixed[1] is mixed[2][0]
    assert sum(parameter.numel() for parameter in mixed.parameters()) == 8


def test_batches_do_not_see_each_other() -> None:
    mixed, first, second = alpha_bn(network(), 0.6), draw(9, 1, 6, 6, seed=3), draw(9, 1, 6, 6, seed=4)
    y = mixed(first)
    mixed(5 + second)
    assert torch.equal(mixed(first), y)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed(first[order]), y[order], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("source_weight", [-0.1, 1.5])
def test_the_weight_is_a_share(source_weight: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        alpha_bn(network(), source_weight)


def test_models_without_statistics_to_mix_are_refused() -> None:
    with pytest.raises(UserError, match="no batch norm"):
        alpha_bn(nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"'1' keeps no statistics"):
        alpha_bn(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)))


@pytest.mark.parametrize("count", [2, 7])
def test_the_component_trains_as_torch_does(count: int) -> None:
    ours, theirs = norms.build("alpha-bn", hidden_size=5).double(), trained(nn.BatchNorm1d(5), 5)
    ours.load_state_dict({name: theirs.state_dict()[name] for name in ours.state_dict()})
    x, towards = draw(count, 3, 5, seed=7), draw(count, 3, 5, seed=8)
    results = []
    for norm, shape in ((ours, (count, 3, 5)), (theirs, (count * 3, 5))):
        leaf = x.reshape(shape).requires_grad_()
        y = norm(leaf)
        y.backward(towards.reshape(shape))
        gradient = leaf.grad.reshape(count, 3, 5)
        results.append((y.reshape(count, 3, 5), gradient, norm.weight.grad, norm.running_mean, norm.running_var))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_the_component_in_evaluation_is_the_converted_layer() -> None:
    norm, x = trained(nn.BatchNorm1d(5), 5), draw(2, 3, 5, seed=7)
    ours = AlphaBN(5, source_weight=0.3).double()
    ours.load_state_dict({name: norm.state_dict()[name] for name in ours.state_dict()})
    before = copy.deepcopy(ours.state_dict())
    expected = alpha_bn(norm, 0.3)(x.reshape(6, 5)).reshape(2, 3, 5)
    torch.testing.assert_close(ours.eval()(x), expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(ours.state_dict()[name], before[name]) for name in before)


def test_only_by_the_source_alone_a_token_of_a_decoder_is_blind_to_later_ones() -> None:
    sizes = {"depth": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 11, "max_length": 8}
    ids = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % 11
    for source_weight in (0.5, 1.0):
        torch.manual_seed(0)
        norm = {"name": "alpha-bn", "source_weight": source_weight}
        decoder = Decoder(ModelConfig.model_validate({**sizes, "norm": norm}))
        decoder.train()(ids).mean().backward()
        changed = (decoder.eval()(ids) - decoder(other))[:, :-1].abs().max()
        assert (changed == 0) == (source_weight == 1.0)


@pytest.mark.parametrize("option", [{"source_weight": 1.2}, {"momentum": -1}])
def test_options_out_of_range_are_one_line(option: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"norm 'alpha-bn', option {next(iter(option))}="):
        norms.build("alpha-bn", option, hidden_size=3)


WORKED = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])


def test_core_worked_numbers() -> None:
    """G = [[.50, .22, .08], [.22, .68, .10], [.08, .10, .02]]."""
    assert class_correlation(WORKED.log(), "samples").item() == pytest.approx(0.8 / 2.0)
    rows = (0.30 / 0.80 + 0.32 / 1.00 + 0.18 / 0.20) / 3
    assert class_correlation(WORKED.log(), "classes").item() == pytest.approx(rows)


@pytest.mark.parametrize("normalization", ["samples", "classes"])
def test_core_is_zero_for_certain_and_largest_for_uniform_predictions(normalization: str) -> None:
    certain = 200 * torch.eye(4)[[0, 1, 2, 3, 1]]
    assert class_correlation(certain, normalization).item() == pytest.approx(0, abs=1e-6)
    assert class_correlation(torch.zeros(5, 4), normalization).item() == pytest.approx(3 / 4)


def test_only_the_loss_by_samples_is_the_gini_impurity() -> None:
    logits = draw(6, 4)
    gini = (1 - logits.softmax(-1).square().sum(-1)).mean()
    torch.testing.assert_close(class_correlation(logits, "samples"), gini)
    assert (class_correlation(logits, "classes") - gini).abs() > 1e-3


def test_core_does_not_depend_on_the_order_of_classes_or_samples() -> None:
    logits = draw(6, 4)
    permuted = logits[torch.tensor([3, 0, 5, 1, 2, 4])][:, torch.tensor([2, 0, 3, 1])]
    torch.testing.assert_close(class_correlation(permuted), class_correlation(logits))


def test_a_class_that_nobody_predicts_gives_finite_gradients() -> None:
    logits = torch.tensor([[0.0, 1.0, -200.0], [1.0, 0.0, -200.0]], requires_grad=True)
    class_correlation(logits).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("normalization", ["samples", "classes"])
def test_a_core_step_is_one_step_down_the_loss_for_gains_and_biases_alone(normalization: str) -> None:
    model, x = alpha_bn(network(), 0.5), draw(9, 1, 6, 6, seed=3)
    parameters = affine_parameters(model)
    assert [parameter.numel() for parameter in parameters] == [4, 4, 6, 6]
    by_hand = copy.deepcopy(model)
    class_correlation(by_hand(x), normalization).backward()
    before = copy.deepcopy(model.state_dict())
    expected_logits = model(x).detach()
    logits = core_step(model, x, torch.optim.SGD(parameters, lr=0.1), normalization)
    assert torch.equal(logits, expected_logits)
    adapted = {id(parameter) for parameter in parameters}
    gradients = dict(by_hand.named_parameters())
    for name, parameter in model.named_parameters():
        step = 0.1 * gradients[name].grad if id(parameter) in adapted else 0.0
        torch.testing.assert_close(parameter.detach(), before[name] - step, rtol=1e-12, atol=1e-14)
        assert parameter.grad is None
    assert class_correlation(model(x), normalization) < class_correlation(logits, normalization)


def test_core_needs_alpha_bn_with_gains() -> None:
    with pytest.raises(UserError, match="convert it by alpha_bn first"):
        affine_parameters(network())
    with pytest.raises(UserError, match="no α-BN layer with a gain"):
        affine_parameters(alpha_bn(nn.BatchNorm1d(3, affine=False)))
