from __future__ import annotations

import pytest
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.el2n_grand import area

pytest.importorskip("sklearn")


def test_a_seed_decides_all_that_is_measured():
    options = {"runs": 2, "early": 5, "steps": 10, "hidden_size": 8}
    found, again = (experiments.build("el2n-grand-digits", options, seed=3) for _ in range(2))
    assert found == again
    arms = {"full", "hardest.30", "random.30", "easiest.30", "hardest.50", "random.50"}
    assert set(found) == arms | {"auc.el2n", "auc.grand", "auc.single"}
    assert all(0 <= value <= 1 for value in found.values())
    assert found["full"] != experiments.build("el2n-grand-digits", options, seed=4)["full"]


def test_wrong_labels_score_high_once_something_is_learned():
    options = {"runs": 2, "early": 60, "steps": 2, "hidden_size": 16}
    found = experiments.build("el2n-grand-digits", options, seed=0)
    untrained = experiments.build("el2n-grand-digits", {**options, "early": 1, "lr": 1e-9}, seed=0)
    assert found["auc.el2n"] > 0.8 > 0.6 > untrained["auc.el2n"]


def test_the_area_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 20, (200,), generator=generator).float()
    positive = torch.rand(200, generator=generator) < 0.2
    assert area(scores, positive) == pytest.approx(roc_auc_score(positive.numpy(), scores.numpy()))
