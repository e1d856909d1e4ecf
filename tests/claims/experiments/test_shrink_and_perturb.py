"""Warm starts on digits: an unperturbed copy is the warm start, and the goal is what ends a training."""

from __future__ import annotations

import math

import torch

from assay.claims.digits import digits
from assay.claims.experiments.shrink_and_perturb import perceptron, until, warm_started_digits


def test_without_shrinking_or_noise_it_is_the_warm_start() -> None:
    found = warm_started_digits(0, images=200, shrink=1.0, perturb=0.0, hidden_size=32)
    assert found["shrunk.accuracy"] == found["warm.accuracy"]
    assert found["shrunk.epochs"] == found["warm.epochs"] < found["fresh.epochs"]
    assert 0.5 < found["fresh.accuracy"] < 1


def test_noise_alone_is_a_fresh_start() -> None:
    found = warm_started_digits(1, images=200, shrink=0.0, perturb=1.0, hidden_size=32)
    assert found["shrunk.epochs"] > found["warm.epochs"]


def test_training_ends_at_its_goal_and_not_before() -> None:
    images, labels, _, _ = digits(0)
    model = perceptron(32, 0)
    options = {"lr": 1e-3, "batch_size": 32, "seed": 0}
    assert until(model, images[:200].flatten(1), labels[:200], 1.01, epochs=3, **options) is None
    assert until(model, images[:200].flatten(1), labels[:200], 0.9, epochs=100, **options) is not None
    with torch.no_grad():
        right = (model(images[:200].flatten(1)).argmax(-1) == labels[:200]).double().mean()
    assert right > 0.9


def test_an_arm_that_misses_the_goal_has_no_number() -> None:
    found = warm_started_digits(0, images=100, hidden_size=8, goal=1.01, most_epochs=2)
    assert all(math.isnan(value) for value in found.values())
