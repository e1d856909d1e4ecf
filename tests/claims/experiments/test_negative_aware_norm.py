from __future__ import annotations

import pytest
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.negative_aware_norm import photograph_patches

sklearn = pytest.importorskip("sklearn")


def test_patches_tile_the_photographs_at_a_quarter_of_their_size() -> None:
    """427 × 640 pixels become 106 × 160, 13 × 20 patches each; their mean is that of the cut photographs."""
    pytest.importorskip("PIL")
    from sklearn.datasets import load_digits, load_sample_image

    patches = photograph_patches()
    assert patches.shape == (2 * 13 * 20, 8, 8)
    pixels = load_digits().images
    grey = load_sample_image("china.jpg")[: 13 * 32].mean(-1) * 16 / 255
    assert patches[:260].mean().item() == pytest.approx((grey.mean() - pixels.mean()) / pixels.std(), abs=1e-5)
    corner = (grey[:4, :4].mean() - pixels.mean()) / pixels.std()
    assert patches[0, 0, 0].item() == pytest.approx(corner, abs=1e-5)
    assert torch.equal(patches, photograph_patches())


def test_numbers_lie_where_they_must() -> None:
    pytest.importorskip("PIL")
    found = experiments.build("negative-aware-norm", {"steps": 2}, seed=0)
    for score in ("nan", "l1", "sparsity", "logit"):
        assert found[score] == pytest.approx((found[f"{score}.near"] + found[f"{score}.far"]) / 2)
        assert 0 <= found[score] <= 1
    assert -1 <= found["share"] <= 1
    assert -1 <= found["correlation"] <= 1


def test_a_network_without_training_does_not_know_its_labels() -> None:
    """At a learning rate of 0 the three networks are one."""
    found = experiments.build("feature-norm-labels", {"steps": 1, "lr": 0.0}, seed=0)
    for name in ("train", "test"):
        assert found[f"semantic.{name}"] == found[f"random.{name}"] == found[f"single.{name}"]
    assert 0.05 < found["random.accuracy"] < 0.4
