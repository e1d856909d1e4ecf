"""The experiments on LayerNorm removal, at a size at which they take no time."""

from __future__ import annotations

from pathlib import Path

import pytest

from assay.claims.experiments import experiments, layernorm_removal
from assay.data import DataConfig
from assay.data.windows import prepare

TINY = {"depth": 2, "hidden_size": 16, "sequence_length": 16, "batch_size": 2, "steps": 16, "start": 1}


@pytest.fixture(autouse=True)
def _small_text(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"corpus": f"text:{corpus}", "eval_bytes": 1024, "sequence_length": 16}
    monkeypatch.setattr(layernorm_removal, "prepare", lambda config: prepare(DataConfig.parse(small)))


def test_without_gaps_gradual_is_at_once_and_kept_knows_nothing_of_the_schedule() -> None:
    found = experiments.build("layernorm-removal", {**TINY, "train_steps": 4, "gaps": (0, 0, 0)}, seed=1)
    assert found["gradual"] == found["at_once"]
    other = experiments.build("layernorm-removal", {**TINY, "train_steps": 4, "gaps": (1, 1, 1)}, seed=1)
    assert (found["trained"], found["kept"], found["at_once"]) == (other["trained"], other["kept"], other["at_once"])
    assert len({other["trained"], other["kept"], other["gradual"], other["at_once"]}) == 4


def test_attributions_are_effects_once_norms_are_gone() -> None:
    found = experiments.build("logit-attribution", {"train_steps": 5, "steps": 20, "tokens": 128}, seed=0)
    assert found["without_norms"] < 1e-5
    assert found["with_norms"] > 0.05
