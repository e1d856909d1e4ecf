from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.nn.residual.poincare import PoincareBatchNorm, ball

CURVATURES = [0.1, 1.0, 2.5]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(channels: int, c: float, scale: float = 0.7, **options: object) -> PoincareBatchNorm:
    norm = PoincareBatchNorm(channels, c, **options).double()  # type: ignore[arg-type]
    norm.bias.data.copy_(0.3 * draw(channels, seed=20))
    norm.scale.data.fill_(scale)
    return norm


def points(x: Tensor, c: float) -> Tensor:
    """Images of tangent vectors as points, one a row."""
    return ball.exp0(x.movedim(1, -1).flatten(0, -2), c)


@pytest.mark.parametrize("c", CURVATURES)
def test_is_the_definition_with_transport(c: float) -> None:
    norm, x = make(4, c), draw(3, 4, 5, 2) / 2
    p = points(x, c)
    mean, place = ball.midpoint(p, c)[None], ball.exp0(norm.bias, c)[None]
    variance = ball.distance(p, mean, c).square().mean()
    moved = ball.transport(mean, place, ball.log(mean, p, c), c)
    expected = ball.exp(place, norm.scale / (variance + norm.eps).sqrt() * moved, c)
    torch.testing.assert_close(points(norm(x), c), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("c", CURVATURES)
def test_is_that_of_hypll(c: float) -> None:
    pytest.importorskip("hypll")
    from hypll.manifolds.poincare_ball import Curvature, PoincareBall
    from hypll.nn import HBatchNorm2d
    from hypll.tensors import ManifoldTensor

    manifold = PoincareBall(Curvature(c, constraining_strategy=lambda value: value))
    theirs = HBatchNorm2d(4, manifold, use_midpoint=True)
    ours, x = make(4, c).float(), draw(3, 4, 5, 2).float() / 4
    theirs.norm.bias.data.copy_(ours.bias)
    theirs.norm.weight.data.copy_(ours.scale.square())
    on_ball = ball.exp0(x.movedim(1, -1), c).movedim(-1, 1)
    expected = theirs(ManifoldTensor(on_ball, manifold, man_dim=1)).tensor.detach()
    found = ball.exp0(ours(x).movedim(1, -1), c).movedim(-1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("c", CURVATURES)
def test_variance_about_the_new_place_is_the_scale_squared(c: float) -> None:
    norm, x = make(4, c), draw(3, 4, 5, 2) / 2
    p, y = points(x, c), points(norm(x), c)
    before = ball.distance(p, ball.midpoint(p, c)[None], c).square().mean()
    after = ball.distance(y, ball.exp0(norm.bias, c)[None], c).square().mean()
    torch.testing.assert_close(after, norm.scale.square() * before / (before + norm.eps))


def test_one_image_alone_may_be_a_batch_of_points() -> None:
    """Fully connected features: rows are points."""
    norm, x = make(4, 0.5), draw(30, 4)
    images = norm(x.T.reshape(1, 4, 5, 6))
    torch.testing.assert_close(norm(x), images.flatten(2)[0].T)


def test_flat_limit() -> None:
    """c → 0: exp₀ is the identity and distances are twice the Euclidean ones."""
    norm, x = make(3, 1e-10), draw(20, 3)
    centred = x - x.mean(0)
    expected = norm.bias + norm.scale * centred / (4 * centred.square().sum(-1).mean()).sqrt()
    torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-6)


def test_moving_all_points_by_an_isometry_changes_nothing_but_a_rotation() -> None:
    c, x = 1.0, draw(20, 3) / 2
    norm = make(3, c)
    norm.bias.data.zero_()
    shift = ball.exp0(draw(3, seed=8) / 2, c)
    moved = ball.log0(ball.mobius_add(shift.expand(20, 3), ball.exp0(x, c), c), c)
    one, other = norm(x), norm(moved)
    torch.testing.assert_close(one @ one.T, other @ other.T, rtol=1e-6, atol=1e-8)
    assert (one - other).abs().max() > 0.01


def test_inference_uses_what_training_saw() -> None:
    """The same batch again and again: the running statistics become its own, along a geodesic."""
    c = 1.0
    norm, x = make(3, c, momentum=0.5), draw(40, 3) / 2
    mean = ball.midpoint(ball.exp0(x, c), c)
    y = norm(x)
    half = ball.exp0(ball.log0(mean, c) / 2, c)
    torch.testing.assert_close(norm.running_mean, half)
    for _ in range(40):
        norm(x)
    norm.eval()
    torch.testing.assert_close(norm(x), y, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(norm(x[:5]), y[:5], rtol=1e-8, atol=1e-9)


def test_inference_by_the_batch_at_hand() -> None:
    norm, x = make(3, 1.0, inference="batch"), draw(40, 3) / 2
    y = norm(x)
    norm.eval()
    assert torch.equal(norm(x), y)
    assert (norm(x[:5]) - y[:5]).abs().max() > 0.01


def test_gradients_by_finite_differences() -> None:
    norm, x = make(3, 0.8), draw(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: norm(x), (x, norm.bias, norm.scale))
