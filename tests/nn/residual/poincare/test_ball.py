from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.nn.residual.poincare import ball

CURVATURES = [0.1, 1.0, 2.5]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(*shape: int, c: float, seed: int = 0, radius: float = 0.9) -> Tensor:
    """Points of the ball, up to that share of its radius."""
    x = draw(*shape, seed=seed)
    share = torch.rand(*shape[:-1], 1, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True) * radius * share / c**0.5


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_worked_numbers() -> None:
    x, y = tensor(0.3, 0.0), tensor(0.0, 0.4)
    torch.testing.assert_close(ball.mobius_add(x, y, 1.0), tensor(0.3431, 0.3588), atol=5e-5, rtol=0)
    half = math.tanh(math.atanh(0.5) / 2)
    pair = torch.stack((tensor(0.5, 0.0), tensor(0.0, 0.0)))
    torch.testing.assert_close(ball.midpoint(pair, 1.0), tensor(half, 0.0))
    three = torch.stack((tensor(0.5, 0.0), tensor(0.0, 0.5), tensor(0.0, 0.0)))
    torch.testing.assert_close(ball.midpoint(three, 1.0), tensor(0.1619, 0.1619), atol=5e-5, rtol=0)


@pytest.mark.parametrize("c", CURVATURES)
def test_is_the_stereographic_model_of_geoopt(c: float) -> None:
    """There k = −c; its gyration is another closed form."""
    pytest.importorskip("geoopt")
    from geoopt.manifolds.stereographic import math as theirs

    k = torch.tensor(-c, dtype=torch.float64)
    x, y, v = points(50, 5, c=c), points(50, 5, c=c, seed=2), draw(50, 5, seed=4)
    for ours, other in (
        (ball.mobius_add(x, y, c), theirs.mobius_add(x, y, k=k)),
        (ball.exp0(v, c), theirs.expmap0(v, k=k)),
        (ball.log0(y, c), theirs.logmap0(y, k=k)),
        (ball.exp(x, 0.3 * v, c), theirs.expmap(x, 0.3 * v, k=k)),
        (ball.log(x, y, c), theirs.logmap(x, y, k=k)),
        (ball.distance(x, y, c), theirs.dist(x, y, k=k)),
        (ball.gyrate(x, y, v, c), theirs.gyration(x, y, v, k=k)),
        (ball.transport(x, y, v, c), theirs.parallel_transport(x, y, v, k=k)),
        (ball.conformal_factor(x, c), theirs.lambda_x(x, k=k, keepdim=True)),
    ):
        torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("c", CURVATURES)
def test_is_the_ball_of_hypll(c: float) -> None:
    pytest.importorskip("hypll")
    from hypll.manifolds.poincare_ball.math import diffgeom, stats

    k = torch.tensor(c, dtype=torch.float64)
    x, y, v = points(50, 5, c=c), points(50, 5, c=c, seed=2), draw(50, 5, seed=4)
    near = 0.1 * v / c**0.5
    for ours, other in (
        (ball.mobius_add(x, y, c), diffgeom.mobius_add(x, y, k)),
        (ball.exp(x, near, c), diffgeom.expmap(x, near, k)),
        (ball.log(x, y, c), diffgeom.logmap(x, y, k)),
        (ball.distance(x, y, c), diffgeom.dist(x, y, k)),
        (ball.gyrate(x, y, near, c), diffgeom.gyration(x, y, near, k)),
        (ball.transport(x, y, near, c), diffgeom.transp(x, y, near, k)),
        (ball.midpoint(x, c), stats.midpoint(x, k, batch_dim=0)),
    ):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(c=st.floats(0.01, 5), dim=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_maps_to_and_from_tangent_spaces_undo_each_other(c: float, dim: int, seed: int) -> None:
    x, y = points(9, dim, c=c, seed=seed), points(9, dim, c=c, seed=seed + 5)
    torch.testing.assert_close(ball.exp(x, ball.log(x, y, c), c), y, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(ball.exp0(ball.log0(y, c), c), y, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(ball.mobius_add(-x, ball.mobius_add(x, y, c), c), y, rtol=1e-7, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(c=st.floats(0.01, 5), seed=st.integers(0, 2**31))
def test_left_addition_is_an_isometry_and_the_midpoint_moves_with_it(c: float, seed: int) -> None:
    a, x, y = (points(8, 3, c=c, seed=seed + k, radius=0.8) for k in (0, 10, 20))
    moved = [ball.mobius_add(a[:1], z, c) for z in (x, y)]
    torch.testing.assert_close(ball.distance(*moved, c), ball.distance(x, y, c), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        ball.midpoint(moved[0], c), ball.mobius_add(a[0], ball.midpoint(x, c), c), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("c", CURVATURES)
def test_midpoint_is_the_centre_of_mass_on_the_hyperboloid(c: float) -> None:
    """Points (t, s) with s² − t² = −1/c: the sum, back at that length, seen from (−1/√c, 0)."""
    x = points(30, 4, c=c)
    square = c * x.square().sum(-1, keepdim=True)
    time, space = ((1 + square) / (1 - square)).sum(0) / c**0.5, (2 * x / (1 - square)).sum(0)
    shrink = (c * (time.square() - space.square().sum())).rsqrt()
    torch.testing.assert_close(ball.midpoint(x, c), shrink * space / (1 + c**0.5 * shrink * time))


@pytest.mark.parametrize("c", CURVATURES)
def test_midpoint_of_one_point_and_of_opposite_points(c: float) -> None:
    x = points(3, 4, c=c)
    torch.testing.assert_close(ball.midpoint(x[:1], c), x[0])
    torch.testing.assert_close(ball.midpoint(torch.cat((x, -x)), c), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("c", CURVATURES)
def test_gyration_is_a_rotation_that_commutes_addition(c: float) -> None:
    """x ⊕ y = gyr[x, y](y ⊕ x); lengths and angles stay; transport keeps the metric's length."""
    x, y = points(20, 4, c=c), points(20, 4, c=c, seed=3)
    torch.testing.assert_close(
        ball.mobius_add(x, y, c), ball.gyrate(x, y, ball.mobius_add(y, x, c), c), rtol=1e-8, atol=1e-10
    )
    v, w = draw(20, 4, seed=5), draw(20, 4, seed=6)
    turned = [ball.gyrate(x, y, z, c) for z in (v, w)]
    torch.testing.assert_close((turned[0] * turned[1]).sum(-1), (v * w).sum(-1))
    lengths = [(ball.conformal_factor(at, c) * z).norm(dim=-1) for at, z in ((x, v), (y, ball.transport(x, y, v, c)))]
    torch.testing.assert_close(*lengths)


def test_flat_limit() -> None:
    """c → 0: plain addition, twice the distance (λ = 2), the arithmetic mean."""
    c, x, y = 1e-10, draw(6, 3), draw(6, 3, seed=1)
    torch.testing.assert_close(ball.mobius_add(x, y, c), x + y, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(ball.distance(x, y, c), 2 * (x - y).norm(dim=-1), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(ball.midpoint(x, c), x.mean(0), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(ball.exp(x, y, c), x + y, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("dtype", "margin"), [(torch.float64, 1e-5), (torch.float32, 4e-3)])
def test_stays_off_the_border(dtype: torch.dtype, margin: float) -> None:
    far = 1e4 * draw(5, 3).to(dtype)
    x = ball.exp0(far, 0.5)
    torch.testing.assert_close(x.norm(dim=-1) * 0.5**0.5, torch.full((5,), 1 - margin, dtype=dtype))
    beyond = far / far.norm(dim=-1, keepdim=True) / 0.5**0.5
    torch.testing.assert_close(
        ball.log0(beyond, 0.5).norm(dim=-1) * 0.5**0.5, torch.full((5,), math.atanh(1 - margin), dtype=dtype)
    )


def test_the_origin_has_values_and_gradients() -> None:
    zero = torch.zeros(2, 3, requires_grad=True)
    for y in (ball.exp0(zero, 1.0), ball.log0(zero, 1.0)):
        assert torch.equal(y, torch.zeros(2, 3))
        (gradient,) = torch.autograd.grad(y.sum(), zero)
        torch.testing.assert_close(gradient, torch.ones(2, 3))
