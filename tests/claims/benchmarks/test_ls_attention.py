from __future__ import annotations

import torch

from assay.claims.benchmarks import benchmarks

TINY = {"depth": 2, "hidden_size": 24, "num_heads": 6, "context": 20, "batch_size": 3}


def test_contestants_differ_by_the_window_alone() -> None:
    """With a window of the whole context they take the same step."""
    whole = benchmarks.build("ls-attention", {**TINY, "window": 20})
    first, second = (contestant() for contestant in whole.values())
    assert list(whole) == ["softmax", "ls-attention"]
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    short = benchmarks.build("ls-attention", {**TINY, "window": 3})
    assert torch.equal(short["softmax"](), first)
    assert not torch.allclose(short["ls-attention"](), first, atol=1e-3)
