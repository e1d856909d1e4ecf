from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from assay.models import Decoder, ModelConfig
from assay.nn.attention.affine_scaled_attention import AffineScaledAttention
from assay.nn.attention.softmax import SoftmaxAttention
from assay.nn.position import Positions

HIDDEN, DIM, TIME = 12, 4, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(num_heads: int = 2, num_kv_heads: int = 1, mean: float = 0.4, **options: Any) -> AffineScaledAttention:
    """In evaluation mode, its running mean ``mean``."""
    mixer = AffineScaledAttention(HIDDEN, num_heads, num_kv_heads, DIM, 0, torch.nn.LayerNorm, **options)
    mixer.double().eval()
    for index, parameter in enumerate(mixer.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=1 + index))
    mixer.mean.fill_(mean)
    return mixer


def plain(mixer: AffineScaledAttention) -> SoftmaxAttention:
    found = SoftmaxAttention(
        HIDDEN, mixer.query.out_features // DIM, mixer.key.out_features // DIM, DIM, 0, torch.nn.LayerNorm
    ).double()
    found.load_state_dict({k: v for k, v in mixer.state_dict().items() if k in found.state_dict()})
    return found


def weights(mixer: AffineScaledAttention, x: Tensor) -> Tensor:
    query, key, _ = mixer.project(x, Positions())
    return mixer.weights(x, query, key, None)


def set_scale(mixer: AffineScaledAttention, z: float, x: Tensor) -> None:
    """Let φ have the argument z at every token of x, whose first feature is 1."""
    mixer.scale_projection.weight.data.zero_()
    mixer.scale_projection.weight.data[:, 0] = z
    assert (x[..., 0] == 1).all()


@pytest.fixture
def x() -> Tensor:
    x = draw(2, TIME, HIDDEN)
    x[..., 0] = 1
    return x


def test_gates_at_their_mean_scale_softmax_attention(x: Tensor) -> None:
    mixer = make(mean=0.3)
    set_scale(mixer, -2.0, x)
    torch.testing.assert_close(mixer(x, Positions()), 0.3 * plain(mixer)(x, Positions()), rtol=1e-6, atol=1e-7)


def test_open_gates_with_mean_one_are_softmax_attention(x: Tensor) -> None:
    mixer = make(mean=1.0)
    set_scale(mixer, 7.0, x)
    torch.testing.assert_close(mixer(x, Positions()), plain(mixer)(x, Positions()), rtol=1e-12, atol=1e-14)


def test_closed_gates_average_the_values(x: Tensor) -> None:
    mixer = make(mean=0.25)
    set_scale(mixer, -6.0, x)
    value = mixer.value(x).repeat(1, 1, 2)
    average = value.cumsum(1) / torch.arange(1, TIME + 1)[:, None]
    torch.testing.assert_close(mixer(x, Positions()), mixer.output(0.25 * average), rtol=1e-12, atol=1e-14)


def test_the_weights_of_every_query_sum_to_the_mean(x: Tensor) -> None:
    sums = weights(make(mean=0.4), x).sum(-1)
    torch.testing.assert_close(sums, torch.full_like(sums, 0.4), rtol=1e-6, atol=1e-7)


def test_of_a_given_length_the_sum_depends_on_how_many_keys_are_seen(x: Tensor) -> None:
    mixer = make(mean=0.4, length=TIME)
    scale = mixer.scale(x)[..., 0]
    expected = scale + (mixer.mean[:, None] - scale) * torch.arange(1, TIME + 1) / TIME
    torch.testing.assert_close(weights(mixer, x).sum(-1), expected, rtol=1e-12, atol=1e-14)
    assert expected.std() > 0.05
    torch.testing.assert_close(expected[..., -1], mixer.mean.expand(2, 2), rtol=1e-6, atol=1e-7)


def test_a_worked_row(x: Tensor) -> None:
    """P = (0.1, 0.9), a = 0.8 and mean 0.4 give weights (−0.12, 0.52): a weight may be negative."""
    mixer = make(1, 1, mean=0.4, qkv_bias=True)
    set_scale(mixer, 3.0, x)
    for projection in (mixer.query, mixer.key):
        projection.weight.data.zero_()
        projection.bias.data.zero_()
    mixer.query.bias.data[0] = 2.0
    mixer.key.weight.data[0, 1] = 1.0
    x[0, :2, 1] = torch.tensor([0.0, 9.0]).log().clamp(min=0).double()
    x[0, 1, 1] = torch.tensor(9.0).double().log()
    row = weights(mixer, x[:1, :2])[0, 0, 1]
    torch.testing.assert_close(row, torch.tensor([-0.12, 0.52]).double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("z", "expected"), [(-6, 0), (-5, 0), (-2, 0.3), (0, 0.5), (3, 0.8), (5, 1), (7, 1)])
def test_linear_clipping(x: Tensor, z: float, expected: float) -> None:
    mixer = make()
    set_scale(mixer, z, x)
    torch.testing.assert_close(mixer.scale(x), torch.full((2, 2, TIME, 1), expected).double(), rtol=1e-6, atol=1e-7)


def test_no_gradient_where_the_clip_is_flat_but_everywhere_in_a_sigmoid(x: Tensor) -> None:
    for activation, moves in [("clip", False), ("sigmoid", True)]:
        mixer = make(activation=activation)
        set_scale(mixer, 6.0, x)
        mixer(x, Positions()).square().sum().backward()
        assert bool(mixer.scale_projection.weight.grad.any()) is moves


class TestRunningMean:
    def test_follows_a_constant_gate_as_a_geometric_series(self, x: Tensor) -> None:
        mixer = make(mean=0.0).train()
        set_scale(mixer, 1.0, x)
        for step in range(1, 6):
            mixer(x, Positions())
            expected = torch.full((2,), 0.6 * (1 - 0.9**step)).double()
            torch.testing.assert_close(mixer.mean, expected, rtol=1e-6, atol=1e-7)

    def test_is_that_of_each_head_over_batch_and_time(self, x: Tensor) -> None:
        mixer = make(mean=0.2, momentum=0.75).train()
        mixer(x, Positions())
        gates = (0.1 * x @ mixer.scale_projection.weight.T + 0.5).clamp(0, 1)
        expected = 0.75 * 0.2 + 0.25 * gates.mean((0, 1))
        torch.testing.assert_close(mixer.mean, expected, rtol=1e-6, atol=1e-7)
        assert (mixer.mean[0] - mixer.mean[1]).abs() > 1e-3

    def test_of_this_step_is_what_the_step_uses_and_without_gradient(self, x: Tensor) -> None:
        mixer = make(mean=0.0).train()
        y = mixer(x, Positions())
        torch.testing.assert_close(mixer.eval()(x, Positions()), y, rtol=1e-12, atol=1e-14)
        assert not mixer.mean.requires_grad

    def test_stands_still_in_evaluation(self, x: Tensor) -> None:
        mixer = make(mean=0.3)
        mixer(x, Positions())
        assert (mixer.mean == 0.3).all()

    def test_is_saved_with_the_weights(self) -> None:
        assert "mean" in make().state_dict()


def test_starts_with_weights_that_sum_to_zero(x: Tensor) -> None:
    sums = weights(make(mean=0.0), x).sum(-1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("layers", "heads", "hidden", "extra"), [(24, 16, 1024, 393_216), (16, 32, 2048, 1_048_576)])
def test_extra_parameters_are_those_of_the_paper(layers: int, heads: int, hidden: int, extra: int) -> None:
    """0.4M and 1.0M at 0.5B and 1B."""
    sizes = {"depth": layers, "hidden_size": hidden, "num_heads": heads, "vocab_size": 8, "max_length": 8}
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in Decoder(ModelConfig.parse({**sizes, "mixer": mixer})).parameters())
            for mixer in ("affine-scaled-attention", "softmax")
        ]
    assert counts[0] - counts[1] == extra
