from __future__ import annotations

from pathlib import Path

import pytest

from assay.claims.experiments import experiments, layerwise_tuning
from assay.data.corpora.python_stdlib import PythonStdlib

TINY = {
    "layers": 1, "every": 2, "depth": 2, "hidden_size": 32, "sequence_length": 32, "batch_size": 2, "steps": 12,
    "tuning_steps": 12,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _few_sources(monkeypatch: pytest.MonkeyPatch, corpus: Path) -> None:
    monkeypatch.setattr(PythonStdlib, "files", lambda self: sorted(corpus.iterdir()))
    monkeypatch.setattr(PythonStdlib, "__init__", lambda self: setattr(self, "folder", corpus))


def test_tuning_learns_english_from_the_first_run_on():
    found = experiments.build("lisa-tuning", TINY, seed=0)
    assert found == experiments.build("lisa-tuning", TINY, seed=0)
    assert max(found["full"], found["lisa"], found["frozen"]) < found["start"]
    assert len(set(found.values())) == 4


def test_with_all_blocks_lisa_is_full_tuning():
    found = experiments.build("lisa-tuning", {**TINY, "layers": 2}, seed=1)
    assert found["lisa"] == found["full"]


def test_distributions_differ_in_their_draws_alone():
    found = experiments.build("owlore-tuning", {**TINY, "threshold": 3.0, "rank": 4}, seed=0)
    assert found["spread"] > 0
    assert max(found["outlier"], found["uniform"], found["reverse"]) < found["start"]
    whole = experiments.build("owlore-tuning", {**TINY, "layers": 2, "rank": 4}, seed=0)
    assert whole["outlier"] == whole["uniform"] == whole["reverse"]


def test_english_is_a_file_for_each_topic(tmp_path: Path):
    layerwise_tuning.write_english(tmp_path / "english")
    assert len(list((tmp_path / "english").iterdir())) > 50
