from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from assay.claims.experiments import experiments
from assay.claims.experiments.residual_expansion import Tower

pytest.importorskip("sklearn")


def test_orders_and_growth_follow_the_theory() -> None:
    """‖x_n‖² / ‖x_0‖² = (1 + λ²)^n for branches that keep the mean square of their input."""
    found = experiments.build("residual-expansion", {"depth": 16}, seed=3)
    assert found["order"] == pytest.approx(3, abs=0.2)
    assert found["unscaled"] == pytest.approx(2**8, rel=0.4)
    assert found["root"] == pytest.approx((1 + 1 / 16) ** 8, rel=0.1)
    assert found["inverse"] == pytest.approx(1.0, rel=0.05)


@torch.no_grad()
def test_a_tower_is_its_formula() -> None:
    tower = Tower(3, 8, 0.25)
    images = torch.randn(5, 8, 8)
    x = tower.encoder(images.flatten(1))
    for first, _, second in tower.branches:
        x = x + 0.25 * F.relu(x @ first.weight.T) @ second.weight.T
    torch.testing.assert_close(tower(images), tower.head(x))


def test_a_seed_decides_everything() -> None:
    options = {"depth": 3, "hidden_size": 16, "steps": 15, "lrs": [1e-2]}
    ours, again, other = (experiments.build("residual-tower", options, seed=seed) for seed in (0, 0, 1))
    assert ours == again != other
    assert set(ours) == {"unscaled", "root", "inverse"}
    assert all(value > 0.3 for value in ours.values())


def test_the_best_learning_rate_counts() -> None:
    options = {"depth": 2, "hidden_size": 16, "steps": 10}
    alone = [experiments.build("residual-tower", {**options, "lrs": [lr]}, seed=0) for lr in (1e-3, 1e-2)]
    both = experiments.build("residual-tower", {**options, "lrs": [1e-3, 1e-2]}, seed=0)
    assert both == {name: max(found[name] for found in alone) for name in both}
