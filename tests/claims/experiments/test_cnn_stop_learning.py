from __future__ import annotations

import pytest

from assay.claims.experiments import experiments

pytest.importorskip("sklearn")


def test_a_network_that_does_not_learn_is_stopped_after_six_epochs() -> None:
    """Frozen weights on shuffled batches: the mean spread moves less than rounding shows, and nothing is lost."""
    found = experiments.build("cnn-stop-learning", {"epochs": 8, "widths": (2,), "lr": 0.0}, seed=0)
    assert found["steps.saved"] == found["constant.saved"] == pytest.approx(0.25)
    assert found["steps.loss"] == found["constant.loss"] == 0


def test_a_short_training_learns_and_is_not_stopped() -> None:
    found = experiments.build("cnn-stop-learning", {"epochs": 3, "widths": (8, 16), "lr": 0.05}, seed=0)
    assert found["steps.saved"] == found["constant.saved"] == 0
    assert found["steps.loss"] == 0
    assert found["constant.accuracy"] > 0.5
