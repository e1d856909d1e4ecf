from __future__ import annotations

import pytest
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.gradient_noise import deep_network

pytest.importorskip("sklearn")


def test_weights_start_as_they_should() -> None:
    generator = torch.Generator().manual_seed(0)
    assert not any(p.any() for p in deep_network(3, 8, 0.0, generator).parameters())
    network = deep_network(20, 50, 0.1, generator)
    matrices = [p for p in network.parameters() if p.ndim == 2]
    assert [p.shape[0] for p in matrices] == [50] * 20 + [10]
    assert torch.cat([p.flatten() for p in matrices]).std().item() == pytest.approx(0.1, rel=0.02)
    assert not any(p.any() for p in network.parameters() if p.ndim == 1)


def test_a_network_of_zeros_stays_at_chance_and_a_shallow_one_learns_with_noise() -> None:
    """One hidden layer is freed by noise within two hundred steps; without it no class is told from another."""
    options = {"depth": 1, "steps": 200, "etas": [0.03]}
    found = experiments.build("gradient-noise-deep", options, seed=0)
    assert found["plain"] < 0.15
    assert found["noise"] > 0.7
    assert experiments.build("gradient-noise-deep", options, seed=0) == found


def test_of_several_variances_the_better_one_on_training_images_counts() -> None:
    def noise(*etas: float) -> float:
        options = {"depth": 1, "steps": 60, "optimizer": "adam", "lr": 1e-3, "init_std": 0.1, "etas": etas}
        return experiments.build("gradient-noise-deep", options, seed=0)["noise"]

    assert noise(1e-4) > noise(100.0)
    assert noise(100.0, 1e-4) == noise(1e-4)
