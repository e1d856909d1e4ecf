from __future__ import annotations

import torch
from torch import Tensor

from assay.nn.residual.poincare import ball, poincare_skip


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_is_the_sum_of_the_points_of_each_pixel() -> None:
    f, x = draw(2, 3, 4, 5) / 2, draw(2, 3, 4, 5, seed=1) / 2
    y = poincare_skip(f, x, 0.7)
    for image, row, column in ((0, 0, 0), (1, 3, 4), (0, 2, 1)):
        at = (image, slice(None), row, column)
        expected = ball.mobius_add(ball.exp0(f[at], 0.7), ball.exp0(x[at], 0.7), 0.7)
        torch.testing.assert_close(ball.exp0(y[at], 0.7), expected)


def test_silent_branch_or_stream_is_the_identity_and_order_counts() -> None:
    x, other = draw(2, 3, 4, 4) / 2, draw(2, 3, 4, 4, seed=1) / 2
    zero = torch.zeros_like(x)
    torch.testing.assert_close(poincare_skip(zero, x, 1.0), x)
    torch.testing.assert_close(poincare_skip(x, zero, 1.0), x)
    one, two = poincare_skip(x, other, 1.0), poincare_skip(other, x, 1.0)
    assert (one - two).abs().max() > 0.01
    torch.testing.assert_close(one.norm(dim=1), two.norm(dim=1))


def test_flat_limit_is_the_plain_residual() -> None:
    f, x = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(poincare_skip(f, x, 1e-10), f + x, rtol=1e-7, atol=1e-8)
