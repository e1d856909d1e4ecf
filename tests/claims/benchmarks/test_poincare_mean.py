from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.claims.benchmarks import benchmarks
from assay.claims.benchmarks.poincare_mean import frechet_mean
from assay.nn.residual.poincare import ball

CURVATURES = [0.1, 1.0, 2.5]


def points(c: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return ball.exp0(torch.randn(60, 4, generator=generator, dtype=torch.float64), c)


@pytest.mark.parametrize("c", CURVATURES)
def test_frechet_mean_has_no_direction_that_shortens_the_squares(c: float) -> None:
    x = points(c)
    mean = frechet_mean(x, c, tolerance=1e-12)
    pull = ball.log(mean[None], x, c)
    assert pull.mean(0).norm() < 1e-8 * pull.norm(dim=-1).mean()


@pytest.mark.parametrize("c", CURVATURES)
def test_frechet_mean_is_that_of_hypll(c: float) -> None:
    pytest.importorskip("hypll")
    from hypll.manifolds.poincare_ball.math.stats import frechet_mean as theirs

    x = points(c)
    torch.testing.assert_close(
        frechet_mean(x, c), theirs(x, torch.tensor(c, dtype=torch.float64)), atol=1e-6, rtol=1e-5
    )


def test_contestants_find_nearby_means_of_the_same_points() -> None:
    found = {name: contestant() for name, contestant in benchmarks.build("poincare-mean", {"points": 64}).items()}
    assert (found["midpoint"] - found["frechet"]).norm() < 0.2
