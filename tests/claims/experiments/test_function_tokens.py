from __future__ import annotations

import numpy as np
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.function_tokens import byte_pairs, topics, windows

TINY = {
    "steps": 4, "early": 2, "batch_size": 2, "length": 32, "vocab_size": 300, "hidden_size": 16, "features": 32,
    "tokens": 1200, "occurrences": 4,
}  # fmt: skip


def test_a_seed_decides_all_that_is_measured():
    found, again = (experiments.build("function-tokens", TINY, seed=2) for _ in range(2))
    assert found == again
    assert 0 < found["coverage"] <= 1
    assert found["function_content"] > 0
    assert set(found) >= {"function_content", "content_content", "learned.function", "degree.content"}


def test_topics_are_the_same_in_another_order():
    first, second = topics(0), topics(1)
    assert first != second
    assert sorted(first) == sorted(second)


def test_byte_pairs_leave_the_last_id_free_and_windows_are_pieces_of_the_stream():
    documents = byte_pairs(["a b a b", "b a b a c"], 260)
    assert max(map(max, documents)) < 259
    stream = np.arange(100)
    rows = windows(stream, 0, steps=3, batch_size=2, length=10)
    assert rows.shape == (3, 2, 10)
    assert torch.equal(rows - rows[..., :1], torch.arange(10).expand(3, 2, 10))
