from __future__ import annotations

import pytest
import torch

from assay.claims.benchmarks import benchmarks
from assay.nn.norm.unified_norm import UnifiedNorm

QUICK = {"depth": 2, "hidden_size": 64, "batch_size": 2, "sequence_length": 8}


def test_folded_or_not_the_logits_are_the_same_and_no_gradient_is_kept() -> None:
    contestants = benchmarks.build("unified-norm", QUICK)
    assert list(contestants) == ["layer-norm", "unified-norm", "fused"]
    logits = {name: contestant() for name, contestant in contestants.items()}
    torch.testing.assert_close(logits["fused"], logits["unified-norm"])
    assert logits["layer-norm"].shape == logits["fused"].shape == (2, 8, 256)
    assert (logits["layer-norm"] - logits["fused"]).abs().max() > 1e-3
    assert not any(value.requires_grad for value in logits.values())


def test_the_fused_contestant_runs_no_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    contestants = benchmarks.build("unified-norm", QUICK)
    forward, calls = UnifiedNorm.forward, []

    def counted(self: UnifiedNorm, x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return forward(self, x)

    monkeypatch.setattr(UnifiedNorm, "forward", counted)
    contestants["fused"]()
    assert calls == []
    contestants["unified-norm"]()
    assert len(calls) == 5
