from __future__ import annotations

import pytest
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.class_prototype_cleaner import auc, corrupted

pytest.importorskip("sklearn")


def test_shares_of_wrong_labels_are_those_asked_for() -> None:
    true = torch.arange(10).repeat(3000)
    labels = corrupted(true, noise=0.4, uneven=0.2, seed=0)
    wrong = (labels != true).double()
    assert wrong[true % 2 == 0].mean().item() == pytest.approx(0.6, abs=0.01)
    assert wrong[true % 2 == 1].mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.bincount((labels - true)[labels != true] % 10)[1:].double().std() < 100


def test_the_area_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    score, right = torch.rand(200, generator=generator).round(decimals=1), torch.rand(200, generator=generator) < 0.6
    assert auc(score, right) == pytest.approx(roc_auc_score(right.numpy(), score.numpy()))


def test_a_short_warm_up() -> None:
    found = experiments.build("prototype-cleaning", {"steps": 20, "width": 16}, seed=0)
    ways = ("prototypes", "mixture", "mixtures")
    assert found.keys() == {f"{way}.{number}" for way in ways for number in ("auc", "accuracy")}
    assert all(0.4 < value <= 1 for value in found.values())
