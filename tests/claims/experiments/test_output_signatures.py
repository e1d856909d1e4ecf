from __future__ import annotations

import pytest

from assay.claims.experiments import experiments

pytest.importorskip("sklearn")

TINY = {
    "passages": 64, "length": 24, "training_epochs": 1, "vocab_size": 280, "hidden_size": 16, "top": 8, "epochs": 2,
}  # fmt: skip


def test_a_seed_decides_all_that_is_measured():
    found, again = (experiments.build("output-signatures", TINY, seed=3) for _ in range(2))
    assert found == again
    assert set(found) == {"los", "actual", "permuted", "linear", "words", "loss", "min-k", "min-k++"}
    assert all(0 <= area <= 1 for area in found.values())


def test_a_model_that_has_seen_nothing_knows_no_members():
    """Without training, members differ from others by chance alone."""
    found = experiments.build("output-signatures", TINY | {"passages": 600, "training_epochs": 0}, seed=0)
    assert found["loss"] == pytest.approx(0.5, abs=0.1)
    assert found["min-k++"] == pytest.approx(0.5, abs=0.1)
