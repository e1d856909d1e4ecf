from __future__ import annotations

import pytest

from assay.claims import domains
from assay.claims.experiments import experiments

TINY = {
    "old_tokens": 1024, "new_tokens": 512, "depth": 1, "hidden_size": 16, "sequence_length": 32, "batch_size": 4,
    "eval_bytes": 512,
}  # fmt: skip


def test_arms_read_what_they_should(monkeypatch: pytest.MonkeyPatch):
    seen = {}
    original = domains.final_domains

    def note(out, table, values):
        seen[out.name] = (table["data"]["corpus"]["shares"], values)
        return original(out, table, values)

    monkeypatch.setattr("assay.claims.experiments.continual_pretraining.final_domains", note)
    found = experiments.build("continual-pretraining", TINY, seed=1)
    arms = ["before", "constant", "replay-0", "replay-5", "replay-25", "union"]
    assert list(seen) == arms
    assert [shares for shares, _ in seen.values()] == [[1, 0], [0, 1], [0, 100], [5, 95], [25, 75], [1024, 512]]
    assert [values["training.tokens"] for _, values in seen.values()] == [1024, *[512] * 4, 1536]
    assert [("start.run" in values) for _, values in seen.values()] == [False, *[True] * 4, False]
    assert set(found) == {f"{arm}.{side}" for arm in arms for side in ("old", "new", "mean")}
    for arm in arms:
        assert found[f"{arm}.mean"] == pytest.approx((found[f"{arm}.old"] + found[f"{arm}.new"]) / 2)
    assert abs(found["constant.new"] - found["before.new"]) < abs(found["replay-0.new"] - found["before.new"])


def test_the_manual_is_english_and_always_the_same():
    chapters = domains.manual()
    assert chapters == domains.manual()
    assert sum(map(len, chapters)) > 300_000
    assert sum(chapter.count(" the ") for chapter in chapters) > 2000
