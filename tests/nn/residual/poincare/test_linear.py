from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.special import beta
from torch import Tensor

from assay.nn.residual.poincare import PoincareConv2d, PoincareLinear, ball
from assay.nn.residual.poincare.linear import euler_beta

CURVATURES = [0.1, 1.0, 2.5]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomized(layer: Any, size: float = 0.4) -> Any:
    layer = layer.double()
    for index, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(size * draw(*parameter.shape, seed=50 + index))
    return layer


def by_distances(x: Tensor, weight: Tensor, offset: Tensor, c: float) -> Tensor:
    """The layer on points: signed distances from the hyperplanes through exp₀(r ẑ) orthogonal to ẑ, times 2|z|,
    are the distances of y from the planes through the origin. Written with ⊕ and λ as geometry has it.
    """
    root = c**0.5
    v = []
    for z, r in zip(weight, offset.flatten(), strict=True):
        unit = z / z.norm()
        base = torch.tanh(root * r) / root * unit
        seen = ball.mobius_add(-base.expand_as(x), x, c)
        inner = (seen * unit).sum(-1)
        distance = torch.asinh(2 * root * inner / (1 - c * seen.square().sum(-1))) / root
        v.append(2 * z.norm() * distance)
    w = torch.sinh(root * torch.stack(v, dim=-1)) / root
    return w / (1 + (1 + c * w.square().sum(-1, keepdim=True)).sqrt())


@pytest.mark.parametrize("c", CURVATURES)
def test_linear_measures_distances_from_hyperplanes(c: float) -> None:
    layer, p = randomized(PoincareLinear(5, 4, c)), draw(20, 5) / 4
    expected = by_distances(ball.exp0(p, c), layer.weight, layer.offset, c)
    torch.testing.assert_close(ball.exp0(layer(p), c), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("c", CURVATURES)
def test_linear_is_that_of_hypll(c: float) -> None:
    pytest.importorskip("hypll")
    from hypll.manifolds.poincare_ball.math.linalg import poincare_fully_connected

    layer, p = randomized(PoincareLinear(5, 4, c)), draw(20, 5)
    theirs = poincare_fully_connected(
        ball.exp0(p, c), layer.weight.T, layer.offset, torch.tensor(c, dtype=torch.float64)
    )
    torch.testing.assert_close(layer(p), ball.log0(theirs, c), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (1, 2), (5, 1)])
@pytest.mark.parametrize("c", CURVATURES)
def test_convolution_is_that_of_hypll(kernel_size: int, stride: int, c: float) -> None:
    """There patches are unfolded, points are on the ball, and weights are [in · k², out]."""
    pytest.importorskip("hypll")
    from hypll.manifolds.poincare_ball import Curvature, PoincareBall
    from hypll.nn import HConvolution2d
    from hypll.tensors import ManifoldTensor

    manifold = PoincareBall(Curvature(c, constraining_strategy=lambda value: value))
    theirs = HConvolution2d(3, 4, kernel_size, manifold, stride=stride, padding=kernel_size // 2)
    ours = randomized(PoincareConv2d(3, 4, kernel_size, c, stride=stride), 0.2).float()
    theirs.weights.tensor.data.copy_(ours.weight.flatten(1).T)
    theirs.bias.data.copy_(ours.offset.flatten())
    p = draw(2, 3, 7, 6).float() / 6
    on_ball = ball.exp0(p.movedim(1, -1), c).movedim(-1, 1)
    expected = theirs(ManifoldTensor(on_ball, manifold, man_dim=1)).tensor.detach()
    found = ball.exp0(ours(p).movedim(1, -1), c).movedim(-1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (1, 2), (5, 1)])
def test_convolution_is_the_linear_layer_on_unfolded_patches(kernel_size: int, stride: int) -> None:
    c = 0.7
    layer, p = randomized(PoincareConv2d(3, 4, kernel_size, c, stride=stride), 0.2), draw(2, 3, 7, 6)
    long = 3 * kernel_size**2
    linear = PoincareLinear(long, 4, c).double()
    linear.weight.data.copy_(layer.weight.flatten(1))
    linear.offset.data.copy_(layer.offset.flatten())
    patches = F.unfold(
        p * beta(long / 2, 0.5) / beta(3 / 2, 0.5), kernel_size, padding=kernel_size // 2, stride=stride
    )
    expected = linear(patches.mT).mT.unflatten(2, layer(p).shape[2:])
    torch.testing.assert_close(layer(p), expected, rtol=1e-9, atol=1e-11)


def test_worked_number() -> None:
    layer = PoincareLinear(2, 2, 1.0).double()
    layer.offset.data.copy_(torch.tensor([0.1, 0.0]))
    y = ball.exp0(layer(ball.log0(torch.tensor([[0.5, 0.0]], dtype=torch.float64), 1.0)), 1.0)
    torch.testing.assert_close(y, torch.tensor([[0.4213, 0.0]], dtype=torch.float64), atol=5e-5, rtol=0)


@pytest.mark.parametrize(("channels", "expected"), [(3, 0.3100), (8, 0.3242), (16, 0.3287), (32, 0.3310)])
def test_worked_numbers_of_the_patches_scale(channels: int, expected: float) -> None:
    assert PoincareConv2d(channels, 4, 3, 0.1).beta == pytest.approx(expected, abs=5e-5)
    assert euler_beta(channels / 2) == pytest.approx(beta(channels / 2, 0.5), rel=1e-12)


@pytest.mark.parametrize("c", CURVATURES)
def test_starts_as_the_identity(c: float) -> None:
    p = draw(20, 6) / 2
    torch.testing.assert_close(PoincareLinear(6, 6, c).double()(p), p, rtol=1e-9, atol=1e-12)
    image = draw(2, 6, 4, 4) / 2
    torch.testing.assert_close(PoincareConv2d(6, 6, 1, c).double()(image), image, rtol=1e-9, atol=1e-12)


def test_identity_keeps_norms_through_depth_and_the_normal_start_does_not() -> None:
    torch.manual_seed(0)
    p = draw(50, 16) / 4
    norms = {}
    for start in ("identity", "normal"):
        x = p
        for _ in range(20):
            x = PoincareLinear(16, 16, 0.1, start=start).double()(x)
        norms[start] = x.norm(dim=-1).mean() / p.norm(dim=-1).mean()
    assert norms["identity"].item() == pytest.approx(1, rel=1e-9)
    assert norms["normal"] < 1e-6


def test_normal_start_has_the_stated_variance() -> None:
    torch.manual_seed(0)
    weight = PoincareConv2d(40, 50, 3, 0.1, start="normal").weight
    assert weight.var().item() == pytest.approx(1 / (2 * 40 * 9 * 50), rel=0.05)


def test_flat_limit() -> None:
    """c → 0: v = 4⟨p, z⟩ − 4|z| r, and y is half of v, with p = x."""
    layer, p = randomized(PoincareLinear(5, 4, 1e-10)), draw(20, 5)
    expected = 2 * p @ layer.weight.T - 2 * layer.weight.norm(dim=1) * layer.offset
    torch.testing.assert_close(layer(p), expected, rtol=1e-7, atol=1e-8)


def test_gradients_by_finite_differences() -> None:
    layer, x = randomized(PoincareConv2d(2, 3, 3, 0.8)), draw(1, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e4])
def test_finite_at_the_origin_and_at_the_border(size: float) -> None:
    """Blank images, a hyperplane without a direction, and inputs far out, in float32."""
    layer = PoincareConv2d(2, 20, 3, 0.1)
    assert not layer.weight[19].any()
    layer.weight.data[0] *= 30
    x = (size * draw(1, 2, 4, 4).float()).requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert y.norm(dim=1).max() <= math.atanh(1 - 4e-3) / 0.1**0.5 + 1e-4
    for gradient in (x.grad, layer.weight.grad, layer.offset.grad):
        assert gradient.isfinite().all()


def test_a_hyperplane_without_a_direction_learns_one() -> None:
    layer = PoincareLinear(2, 3, 0.1)
    layer(draw(5, 2).float()).sum().backward()
    assert layer.weight.grad[2].abs().min() > 0.1
