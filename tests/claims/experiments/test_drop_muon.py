from __future__ import annotations

import math

import pytest
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.drop_muon import network

TINY = {"channels": [4, 8], "lrs": [0.02, 0.05], "accuracy": 0.5, "batch_size": 128, "steps": 30}


def test_both_arms_reach_the_accuracy_and_a_dropped_step_costs_less():
    pytest.importorskip("sklearn")
    found = experiments.build("drop-muon", TINY, seed=1)
    again = experiments.build("drop-muon", TINY, seed=1)
    assert {name: value for name, value in found.items() if "seconds" not in name} == {
        name: value for name, value in again.items() if "seconds" not in name
    }
    assert all(math.isfinite(value) for value in found.values())
    assert found["drop.operations"] / found["drop.steps"] < found["muon.operations"] / found["muon.steps"]


def test_an_accuracy_that_is_not_reached_is_said_to_cost_without_end():
    pytest.importorskip("sklearn")
    found = experiments.build("drop-muon", {**TINY, "accuracy": 1.01, "steps": 2, "lrs": [0.02]}, seed=0)
    assert set(found.values()) == {math.inf}


def test_the_network_has_a_convolution_for_each_halving():
    model = network([4, 8, 16])
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert sum(p.ndim == 4 for p in model.parameters()) == 3
