from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.claims.experiments import experiments
from assay.claims.experiments.multiplicative_updates import energy_distance, log_normal_distance, spirals
from assay.models.dale_langevin import MultiplicativeDiffusion


def test_the_distance_tells_log_normal_weights_from_normal_ones() -> None:
    model = nn.Linear(200, 200)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.weight.log_normal_(-2, 0.7, generator=generator).mul_(
            torch.randint(2, (200, 200), generator=generator) * 2 - 1
        )
    assert log_normal_distance(model) < 0.01
    nn.init.normal_(model.weight, generator=generator)
    assert log_normal_distance(model) > 0.08


def test_energy_distance_of_shifted_points() -> None:
    """Points at 0 and at (3, 4): 2 · 5 − 0 − 0; halves of each are 2 · 2.5 − 2.5 − 2.5 apart from themselves."""
    x = torch.zeros(4, 2)
    y = x + torch.tensor([3.0, 4.0])
    assert energy_distance(x, y) == pytest.approx(10)
    assert energy_distance(torch.cat([x, y]), torch.cat([x, y])) == pytest.approx(0, abs=1e-6)


def test_spirals_are_positive_and_turn_around_their_centre() -> None:
    points = spirals(4000, torch.Generator().manual_seed(0))
    assert points.min() > 0
    assert (points.mean(0) - 5).abs().max() < 0.1
    assert (points - 5).norm(dim=1).max() < 3.5
    half_turned = 10 - points
    assert energy_distance(points, half_turned) < 0.01


def test_digits_by_exponentiated_gradients() -> None:
    pytest.importorskip("sklearn")
    options = {"steps": 20, "batch_size": 32, "hidden_size": 12}
    found, again = (experiments.build("exponentiated-gradient-digits", options, seed=1) for _ in range(2))
    assert found == again
    assert found["eg.flipped"] == 0
    assert found["adam.flipped"] > 0
    assert found["start.distance"] > 0.05
    assert found["eg.accuracy"] > 0.15
    none = experiments.build("exponentiated-gradient-digits", {**options, "lr": 0.0}, seed=1)
    assert none["eg.distance"] == none["adam.distance"] == none["start.distance"]


def test_spirals_by_two_samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"steps": 3, "batch_size": 16, "hidden_size": 8, "samples": 60, "sampling_steps": 6}
    found, again = (experiments.build("dale-langevin-spirals", options, seed=1) for _ in range(2))
    assert found == again
    assert found["dale-langevin.outside"] == 0
    assert found["start"] > 0
    monkeypatch.setattr(MultiplicativeDiffusion, "sample", lambda self, score, start, **_: start)
    unmoved = experiments.build("dale-langevin-spirals", options, seed=1)
    assert unmoved["dale-langevin"] == unmoved["unconstrained"] == unmoved["start"]
