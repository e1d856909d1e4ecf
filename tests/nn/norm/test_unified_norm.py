from __future__ import annotations

import math
import statistics
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.claims.benchmarks.unified_norm import fold
from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.initialization import initialize
from assay.nn.norm.unified_norm import UnifiedNorm, geometric_mean
from assay.nn.position import Positions


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(
    hidden: int, window: int = 4, warmup: int = 0, eps: float = 0.0, outlier_filtration: bool = False
) -> UnifiedNorm:
    norm = UnifiedNorm(hidden, window=window, warmup=warmup, eps=eps, outlier_filtration=outlier_filtration).double()
    norm.weight.data.copy_(draw(hidden, seed=100))
    norm.bias.data.copy_(draw(hidden, seed=101))
    return norm


def step(norm: UnifiedNorm, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of ⟨y, dy⟩ with respect to x."""
    x = x.clone().requires_grad_()
    norm.zero_grad()
    y = norm(x)
    y.backward(dy)
    assert x.grad is not None
    return y.detach(), x.grad


class ByHand:
    """The definition with Python's own numbers: lists of features, windows that forget by themselves."""

    def __init__(self, norm: UnifiedNorm, window: int, warmup: int, eps: float, filtration: bool) -> None:
        self.gamma, self.beta = norm.weight.tolist(), norm.bias.tolist()
        self.size, self.warmup, self.eps, self.filtration = window, warmup, eps, filtration
        hidden = len(self.gamma)
        self.phi, self.e = [1.0] * hidden, [0.0] * hidden
        self.moments = [deque([0.0] * window, window) for _ in range(hidden)]
        self.gradients = [deque([0.0] * window, window) for _ in range(hidden)]
        self.steps = 0

    def step(
        self, x: list[list[float]], dy: list[list[float]]
    ) -> tuple[list[list[float]], list[list[float]], list[float]]:
        """``x`` and ``dy`` are lists of features of lists of tokens; so are the results, and ∂L/∂γ last."""
        self.steps += 1
        m = [statistics.fmean(value**2 for value in values) for values in x]
        settled = self.size > 1 and self.steps > self.size and self.steps >= self.warmup
        outlier = False
        if settled and self.filtration:
            roots = [math.sqrt(value) for window in self.moments for value in window]
            threshold = self.size * statistics.variance(roots)
            for index, window in enumerate(self.moments):
                new = [*list(window)[1:], m[index]]
                outlier |= statistics.fmean(new) - math.prod(new) ** (1 / self.size) > threshold
        smooth = settled and not outlier
        ys, dxs, dgammas = [], [], []
        for index, gamma in enumerate(self.gamma):
            self.moments[index].append(self.phi[index] if outlier else m[index])
            v = math.prod(self.moments[index]) ** (1 / self.size) if smooth else m[index]
            root = math.sqrt(v + self.eps)
            r = min(5.0, max(0.2, root / math.sqrt(self.phi[index] + self.eps))) if smooth else 1.0
            zs = [value / root for value in x[index]]
            ds = [r * gamma * value for value in dy[index]]
            g = statistics.fmean(d * z for d, z in zip(ds, zs, strict=True))
            self.gradients[index].append(self.e[index] if outlier else g)
            if not outlier:
                mean = statistics.fmean(self.gradients[index]) if smooth else g
                self.e[index] = 0.9 * self.e[index] + 0.1 * mean
                self.phi[index] = 0.9 * self.phi[index] + 0.1 * v
            subtracted = g if outlier or self.size == 1 else self.e[index]
            ys.append([gamma * z + self.beta[index] for z in zs])
            dxs.append([(d - subtracted * z) / root for d, z in zip(ds, zs, strict=True)])
            dgammas.append(sum(r * z * d for z, d in zip(zs, dy[index], strict=True)))
        return ys, dxs, dgammas


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.integers(1, 3),
    window=st.integers(1, 4),
    warmup=st.integers(0, 6),
    filtration=st.booleans(),
    eps=st.sampled_from([1e-5, 0.1]),
    spread=st.sampled_from([0.0, 0.5, 2.0]),
    seed=st.integers(0, 2**20),
)
def test_is_the_definition_over_steps(
    hidden: int, window: int, warmup: int, filtration: bool, eps: float, spread: float, seed: int
) -> None:
    norm = make(hidden, window, warmup, eps, filtration)
    reference = ByHand(norm, window, warmup, eps, filtration)
    for number in range(10):
        scale = math.exp(spread * draw(1, seed=seed + 100 + number).item())
        x, dy = scale * draw(2, 3, hidden, seed=seed + 2 * number), draw(2, 3, hidden, seed=seed + 2 * number + 1)
        y, dx = step(norm, x, dy)
        ys, dxs, dgammas = reference.step(x.flatten(0, 1).T.tolist(), dy.flatten(0, 1).T.tolist())
        torch.testing.assert_close(y.flatten(0, 1).T, torch.tensor(ys, dtype=torch.float64))
        torch.testing.assert_close(dx.flatten(0, 1).T, torch.tensor(dxs, dtype=torch.float64))
        assert norm.weight.grad is not None
        assert norm.weight.grad.tolist() == pytest.approx(dgammas)
        assert norm.second_moment.tolist() == pytest.approx(reference.phi)
        assert norm.gradient_mean.tolist() == pytest.approx(reference.e)


def constant_inputs(norm: UnifiedNorm, values: list[float]) -> list[tuple[float, float]]:
    found = []
    for value in values:
        y = norm(torch.full((4, 1), value))
        found.append((y[0].item(), norm.second_moment.item()))
    return found


def test_worked_numbers_of_the_published_module() -> None:
    norm = UnifiedNorm(1, window=2, warmup=0, eps=0.0)
    found = constant_inputs(norm, [1.0, 2.0, 4.0, 1.0])
    assert found == [pytest.approx(pair, abs=1e-4) for pair in ((1, 1.0), (1, 1.3), (1.4142, 1.97), (0.5, 2.173))]


def test_an_outlier_is_normalised_by_itself_and_leaves_no_trace() -> None:
    norm = UnifiedNorm(1, warmup=0, outlier_filtration=True)
    constant_inputs(norm, [1, 1.1, 0.9, 1, 1.05, 0.95])
    phi = norm.second_moment.item()
    assert phi == pytest.approx(0.996, abs=5e-4)
    assert constant_inputs(norm, [10.0]) == [pytest.approx((1.0, phi), abs=1e-5)]
    assert norm.moment_window[-1].item() == phi
    after = constant_inputs(norm, [1.0])[0][0]
    assert after == pytest.approx((1 / (1 * 1.05**2 * 0.95**2 * phi)) ** (1 / 8), abs=1e-4)
    free = UnifiedNorm(1, warmup=0)
    constant_inputs(free, [1, 1.1, 0.9, 1, 1.05, 0.95, 10.0])
    assert free.second_moment.item() > 1.2


def test_the_window_of_one_is_the_exact_gradient_of_batch_rms_norm() -> None:
    norm = make(4, window=1)
    for number in range(3):
        x, dy = (1 + number) * draw(3, 5, 4, seed=number), draw(3, 5, 4, seed=10 + number)
        y, dx = step(norm, x, dy)
        exact = x.clone().requires_grad_()
        expected = norm.weight * exact / exact.square().mean((0, 1)).sqrt() + norm.bias
        expected.backward(dy)
        assert exact.grad is not None
        torch.testing.assert_close(y, expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(dx, exact.grad, rtol=1e-10, atol=1e-12)


def test_on_the_same_data_again_and_again_everything_becomes_exact() -> None:
    norm, x, dy = make(4), draw(3, 5, 4), draw(3, 5, 4, seed=1)
    exact = x.clone().requires_grad_()
    expected = norm.weight * exact / exact.square().mean((0, 1)).sqrt() + norm.bias
    expected.backward(dy)
    assert exact.grad is not None
    for _ in range(300):
        y, dx = step(norm, x, dy)
    torch.testing.assert_close(y, expected.detach())
    torch.testing.assert_close(dx, exact.grad, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(norm.eval()(x), expected.detach())


def test_gradients_are_on_the_scale_of_inference() -> None:
    """r within its bounds: with e = 0 the gradient is that of γ x / √(φ + ε), up to what φ lags behind."""
    norm = make(3)
    for number in range(6):
        step(norm, draw(8, 3, seed=number), torch.zeros(8, 3).double())
    phi = norm.second_moment.clone()
    x, dy = draw(8, 3, seed=20), draw(8, 3, seed=21)
    step(norm, x, dy)
    assert norm.weight.grad is not None
    torch.testing.assert_close(norm.weight.grad, (dy * x / phi.sqrt()).sum(0))


def test_geometric_means() -> None:
    window = torch.tensor([[1.0, 3.0, 0.0], [4.0, 3.0, 5.0]])
    torch.testing.assert_close(geometric_mean(window), torch.tensor([2.0, 3.0, 0.0]))
    window = draw(5, 7).square()
    assert torch.all(geometric_mean(window) < window.mean(0))


def test_windows_that_are_not_full_do_not_count() -> None:
    norm = make(2)
    for number in range(4):
        x = draw(6, 2, seed=number)
        y, _ = step(norm, x, draw(6, 2, seed=10 + number))
        expected = norm.weight * x / x.square().mean(0).sqrt() + norm.bias
        torch.testing.assert_close(y, expected.detach())
    y, _ = step(norm, x := draw(6, 2, seed=5), draw(6, 2))
    assert (y - norm.weight * x / x.square().mean(0).sqrt() - norm.bias).abs().max() > 1e-3


def trained(norm: UnifiedNorm) -> UnifiedNorm:
    hidden = len(norm.weight)
    for number in range(7):
        step(norm, 3 * draw(2, 4, hidden, seed=number), draw(2, 4, hidden, seed=10 + number))
    return norm


def test_evaluation_is_torchs_batch_norm_with_a_mean_of_zero() -> None:
    norm = trained(make(5, eps=1e-5)).eval()
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    x = draw(7, 5, seed=50)
    expected = F.batch_norm(x, torch.zeros(5).double(), norm.second_moment, norm.weight, norm.bias, False, 0.0, 1e-5)
    torch.testing.assert_close(norm(x), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.state_dict().items())


@pytest.mark.parametrize("bias", [True, False])
def test_folded_into_linear_maps_it_is_the_same(bias: bool) -> None:
    norm = trained(make(5, eps=1e-5)).eval()
    linears = [nn.Linear(5, out, bias=bias).double() for out in (2, 3)]
    x = draw(4, 5, seed=60)
    expected = [linear(norm(x)) for linear in linears]
    norm.fold_into(linears)
    for linear, y in zip(linears, expected, strict=True):
        torch.testing.assert_close(linear(x), y, rtol=1e-12, atol=1e-12)
        assert {name for name, _ in linear.named_parameters()} == {"weight", "bias"}
    with pytest.raises(UserError, match="norm of 5 features does not fold into a map that takes 4"):
        norm.fold_into([nn.Linear(4, 2)])


def decoder() -> Decoder:
    sizes = {"depth": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 31, "max_length": 12}
    model = Decoder(ModelConfig.parse({**sizes, "norm": {"name": "unified-norm", "warmup": 2}})).double()
    initialize(model, 0, 0.3)
    for index, norm in enumerate(module for module in model.modules() if isinstance(module, UnifiedNorm)):
        norm.weight.data.copy_(1 + draw(16, seed=index) / 3)
        norm.bias.data.copy_(draw(16, seed=50 + index) / 3)
    for number in range(8):
        ids = torch.randint(31, (3, 12), generator=torch.Generator().manual_seed(number))
        model(ids).square().mean().backward()
    return model.eval()


def test_folded_into_the_maps_of_a_decoders_sublayer_it_is_the_same() -> None:
    model = decoder()
    sublayer, x = model.layers[1].mlp, draw(2, 12, 16)
    expected = sublayer(model.residual, x)
    sublayer.input_norm.fold_into([sublayer.branch.gate, sublayer.branch.up])
    sublayer.input_norm = None
    torch.testing.assert_close(sublayer(model.residual, x), expected, rtol=1e-12, atol=1e-12)
    mixer = model.layers[0].mixer
    expected = mixer(model.residual, x, Positions(), None)
    mixer.input_norm.fold_into([mixer.branch.query, mixer.branch.key, mixer.branch.value])
    mixer.input_norm = None
    torch.testing.assert_close(mixer(model.residual, x, Positions(), None), expected, rtol=1e-12, atol=1e-12)


def test_folded_away_in_a_whole_decoder_it_is_the_same() -> None:
    model, ids = decoder(), torch.arange(24).view(2, 12)
    expected = model(ids)
    fold(model)
    assert not any(isinstance(module, UnifiedNorm) for module in model.modules())
    torch.testing.assert_close(model(ids), expected, rtol=1e-11, atol=1e-11)


def test_in_evaluation_no_token_sees_a_later_one() -> None:
    model, ids = decoder(), torch.arange(24).view(2, 12)
    changed = ids.clone()
    changed[:, 7:] = 3
    torch.testing.assert_close(model(changed)[:, :7], model(ids)[:, :7], rtol=1e-12, atol=1e-12)
    model.train()
    assert (model(changed)[:, :7] - model(ids)[:, :7]).abs().max() > 1e-3


def test_may_be_used_twice_before_a_backward() -> None:
    norm = make(3)
    x = draw(4, 3).requires_grad_()
    (norm(x) + norm(2 * x)).sum().backward()
    assert norm.steps.item() == 2
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_saved_and_loaded_it_goes_on_alike() -> None:
    one, other = trained(make(3, warmup=2)), make(3, warmup=2)
    other.load_state_dict(one.state_dict())
    x, dy = draw(5, 3, seed=40), draw(5, 3, seed=41)
    for a, b in zip(step(one, x, dy), step(other, x, dy), strict=True):
        assert torch.equal(a, b)
    buffers = {"second_moment", "moment_window", "gradient_mean", "gradient_window", "steps"}
    assert buffers < one.state_dict().keys()
