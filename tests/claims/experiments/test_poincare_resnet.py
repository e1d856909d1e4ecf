from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.claims.experiments import experiments
from assay.claims.experiments.poincare_resnet import auroc, fast_gradient_sign

sklearn = pytest.importorskip("sklearn")


def test_what_the_two_graphs_keep() -> None:
    """By hand: f, x, their points and the sum, once each, and six nodes with the two leaves."""
    found = experiments.build("poincare-graph", {"points": 50, "dim": 4}, seed=0)
    assert (found["explicit.bytes"], found["explicit.steps"]) == (5 * 50 * 4 * 4, 6)
    assert found["plain.bytes"] > found["explicit.bytes"]
    assert found["plain.steps"] > 20


def test_norms_of_linear_layers_and_convolutions() -> None:
    linear = experiments.build("poincare-norms", {"depth": 3}, seed=1)
    assert linear["identity"] == pytest.approx(1)
    assert linear["normal"] < 0.1
    convolution = experiments.build("poincare-norms", {"depth": 1, "layer": "convolution"}, seed=1)
    assert 0.1 < convolution["identity"] < 0.6


def test_auroc_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    inside, outside = (torch.randint(0, 9, (n,), generator=generator) / 3 for n in (40, 30))
    label = [1] * 40 + [0] * 30
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(label, torch.cat((inside, outside))))


def test_attack_on_a_linear_classifier_lowers_the_right_logit_by_its_weights() -> None:
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.bias)
    model.weight.data.copy_(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]))
    image = torch.tensor([[0.3, 0.1, -0.2]])
    attacked = fast_gradient_sign(model, image, torch.tensor([0]), 0.25)
    torch.testing.assert_close(attacked - image, torch.tensor([[-0.25, 0.25, -0.25]]))


def test_reports_three_numbers_for_each_network() -> None:
    found = experiments.build("poincare-digits", {"steps": 1}, seed=0)
    assert {name.split(".")[1] for name in found} == {"accuracy", "auroc", "attacked"}
    assert all(0 <= value <= 1 for value in found.values())
