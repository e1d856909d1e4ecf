from __future__ import annotations

import pytest

from assay.analysis.brain_rot import count_tokens
from assay.claims.domains import manual
from assay.claims.experiments import experiments
from assay.claims.experiments.brain_rot import DOSES, passages

TINY = {
    "first_tokens": 512, "tokens": 6000, "tuned_tokens": 512, "depth": 1, "hidden_size": 16, "sequence_length": 32,
    "batch_size": 16, "eval_bytes": 512,
}  # fmt: skip


def test_quantities_follow_from_each_other():
    found = experiments.build("brain-rot", TINY, seed=1)
    assert set(found) == {f"{kind}.{dose}" for kind in ("long", "short", "context", "tuned") for dose in DOSES} | {
        "slope",
        "tuned.slope",
    }
    for dose in DOSES:
        assert found[f"context.{dose}"] == pytest.approx(found[f"short.{dose}"] - found[f"long.{dose}"])
    assert len({found[f"long.{dose}"] for dose in DOSES}) == len(DOSES)
    mean = sum(DOSES) / 500
    spread = sum((dose / 100 - mean) ** 2 for dose in DOSES)
    slope = sum((dose / 100 - mean) * found[f"long.{dose}"] for dose in DOSES) / spread
    assert found["slope"] == pytest.approx(slope)


def test_passages_joined_are_the_text_and_long_enough_to_count():
    for chapter in manual()[:20]:
        pieces = passages(chapter)
        assert "".join(pieces) == chapter
        assert all(len(piece) >= 900 for piece in pieces[:-1])
    lengths = [count_tokens(piece) for chapter in manual() for piece in passages(chapter)[:-1]]
    assert sum(length > 100 for length in lengths) > 0.9 * len(lengths)
