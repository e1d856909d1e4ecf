from __future__ import annotations

import math

import pytest
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments import normalized_logistic_gd as module
from assay.claims.experiments.normalized_logistic_gd import RATES, steps
from assay.optim.normalized_logistic_gd import separate


def test_the_worst_case_does_not_depend_on_the_seed() -> None:
    found = [experiments.build("normalized-logistic-worst-case", {"n": 10}, seed=seed) for seed in (0, 1)]
    assert found[0] == found[1]
    assert found[0] == {
        "normalized_0.1": 60,
        "normalized_1": 7,
        "normalized_10": 2,
        "normalized_100": 2,
        "logistic_100": 4,
    }


def test_what_is_not_separated_has_no_number_of_steps() -> None:
    assert math.isnan(steps(separate(torch.ones(2, 1), torch.tensor([1.0, -1.0]), max_steps=3)))


def test_digits_in_shares_of_one_in_a_hundred_and_one_half(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    shares = []

    def noting(inputs: torch.Tensor, sides: torch.Tensor, **options: object) -> object:
        shares.append((sides == 1).double().mean().item())
        assert (inputs[:, -1] == 1).all()
        return separate(inputs, sides, **options)

    monkeypatch.setattr(module, "separate", noting)
    found = experiments.build("normalized-logistic-digits", {"max_steps": 150}, seed=12)
    assert shares[:8] == pytest.approx([1 / 101] * 8, rel=0.05)
    assert shares[8:] == [0.5] * 8
    for data in ("imbalanced", "balanced"):
        taken = [found[f"{data}.normalized_{rate:g}"] for rate in RATES]
        assert found[f"{data}.normalized"] == min(count for count in taken if count == count)
        assert found[f"{data}.peak_100"] > math.log(2)
