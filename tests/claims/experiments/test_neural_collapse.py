from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.claims.experiments import experiments
from assay.claims.experiments.neural_collapse import fit, perceptron

pytest.importorskip("sklearn")


def test_weight_decay_of_a_group_is_what_it_says() -> None:
    """Without a gradient on the hidden layer (its outputs are all 0), a step shrinks it by lr · decay alone."""
    body, head = perceptron(0, [4, 3], 2)
    layer = body[0]
    assert isinstance(layer, nn.Linear)
    nn.init.constant_(layer.bias, -100)
    before = layer.weight.detach().clone()
    groups = [
        {"params": list(body.parameters()), "weight_decay": 0.5},
        {"params": list(head.parameters()), "weight_decay": 0.0},
    ]
    data = torch.randn(64, 4), torch.arange(64) % 2
    fit(nn.Sequential(body, head), groups, data, steps=1, lr=0.1, seed=0)
    torch.testing.assert_close(layer.weight.detach(), before * 0.95)


def test_numbers_of_short_runs() -> None:
    decay = experiments.build("collapse-weight-decay", {"steps": 6, "width": 16, "depth": 1}, seed=0)
    assert decay["features.2"] == abs(decay["double"])
    assert decay["features.0"] == abs(decay["zero"])
    assert decay["head.0"] >= 0
    layers = experiments.build("collapse-layers", {"steps": 6, "width": 16, "layers": 1}, seed=0)
    assert layers["nc1"] == layers["nc1.worst"]
    assert layers["spread"] == layers["spread.worst"]


def test_a_higher_price_keeps_features_nearer() -> None:
    found = experiments.build("collapse-nearby", {"per_class": 3, "betas": (1.0, 1000.0)}, seed=0)
    assert found["spread.1"] < found["spread.1000"] == pytest.approx(1, abs=0.02)
