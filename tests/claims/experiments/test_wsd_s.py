"""The arms agree where they must: before a later budget exists, and where nothing decays."""

from __future__ import annotations

import pytest

from assay.claims.experiments.wsd_s import wsd_s_budgets

TINY = {
    "model.depth": 1,
    "model.hidden_size": 16,
    "model.num_heads": 1,
    "data.sequence_length": 32,
    "data.batch_size": 2,
    "data.eval_bytes": 2048,
}


def test_the_first_budget_of_wsd_s_is_that_of_wsd() -> None:
    """Until the first branch ends, both have taken the same steps."""
    found = wsd_s_budgets(0, tokens=64 * 40, decay=0.2, run=TINY)
    assert {f"{arm}.{i}" for arm in ("wsd-s", "wsd", "cyclic-cosine", "cosine") for i in (1, 2, 3)} <= found.keys()
    assert found["wsd-s.1"] == pytest.approx(found["wsd.1"], rel=1e-6)
    assert found["cyclic-cosine.1"] == pytest.approx(found["cosine.1"], rel=1e-6)
    assert found["wsd-s"] == pytest.approx((found["wsd-s.2"] + found["wsd-s.3"]) / 2)
    assert found["wsd-s.2"] != found["wsd.2"]
