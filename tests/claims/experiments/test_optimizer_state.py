from __future__ import annotations

import pytest

from assay.claims.experiments import experiments


def test_bytes_are_those_that_shapes_give() -> None:
    """24 layers at a width of 32: four square matrices and three of 32 by 85, with ranks of 8."""
    found = experiments.build("optimizer-state", {"width": 32}, seed=0)
    layer, embeddings, vectors = 4 * 32 * 32 + 3 * 32 * 85, 2 * 500 * 32, 49 * 32
    total = 24 * layer + embeddings + vectors
    low = 24 * 8 * (4 * (2 * 32 + 32) + 3 * (2 * 85 + 32))
    rest = 2 * (embeddings + vectors)
    assert found["adamw"] == 8
    assert found["sinkgd"] == pytest.approx(4 * rest / total)
    assert found["galore"] == pytest.approx(4 * (rest + low) / total)
    assert found["fira"] == pytest.approx(4 * (rest + low + 24 * 7) / total)
