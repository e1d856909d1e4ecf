from __future__ import annotations

import numpy as np
import pytest

from assay.claims import domains
from assay.claims.experiments import experiments
from assay.claims.experiments.curriculum_constant_lr import SCHEDULES, corrupted

TINY = {
    "tokens": 4096, "depth": 1, "hidden_size": 16, "sequence_length": 32, "batch_size": 4, "piece": 100,
    "eval_bytes": 512,
}  # fmt: skip


def test_gains_are_what_ascending_order_saves(monkeypatch: pytest.MonkeyPatch):
    seen = []
    original = domains.final_domains

    def note(out, table, values):
        seen.append((out.name, values["data.order"]["name"], values["schedule"]))
        return original(out, table, values)

    monkeypatch.setattr("assay.claims.experiments.curriculum_constant_lr.final_domains", note)
    found = experiments.build("curriculum-constant-lr", TINY, seed=1)
    assert len(seen) == 2 * len(SCHEDULES)
    assert all(name.startswith(order) for name, order, _ in seen)
    for schedule in SCHEDULES:
        one, other = found[f"uniform.{schedule}"], found[f"ascending.{schedule}"]
        assert found[f"gain.{schedule}"] == pytest.approx(one - other)
        assert one != other
    assert found["uniform.constant"] != found["uniform.average"]


def test_the_share_of_replaced_characters_is_the_rate():
    text = "é" * 20_000
    found = corrupted(text, 0.3, np.random.default_rng(0))
    assert len(found) == len(text)
    assert sum(one != other for one, other in zip(text, found, strict=True)) / len(text) == pytest.approx(
        0.3, abs=0.015
    )
    assert corrupted(text, 0.0, np.random.default_rng(0)) == text
