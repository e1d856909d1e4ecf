from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.claims.experiments import accelerated_stream as module
from assay.claims.experiments import experiments
from assay.models.accelerated_stream import AcceleratedStream

TINY = {"depth": 4, "hidden_size": 32, "rate": 2, "rank": 4, "length": 16, "batch_size": 4, "pretraining": 8}


def test_untrained_exits_are_the_layer_itself() -> None:
    found = experiments.build("accelerated-stream", {**TINY, "steps": 0}, seed=0)
    assert set(found) == {"accelerated", "affine", "bottleneck", "exit", "later"}
    assert found["accelerated"] == found["affine"] == found["bottleneck"] == found["exit"]
    assert found["later"] == 1.0


def test_a_seed_decides_everything_and_exits_learn() -> None:
    ours, again = (experiments.build("accelerated-stream", {**TINY, "steps": 8}, seed=1) for _ in range(2))
    assert ours == again
    assert ours["accelerated"] != ours["exit"]


def test_exits_have_the_same_number_of_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[AcceleratedStream, dict[str, nn.Module]]] = []
    monkeypatch.setattr(module, "_agreement", lambda stream, heads, *rest: seen.append((stream, heads)) or {})
    options = {**TINY, "hidden_size": 64, "rank": 16, "pretraining": 0, "steps": 0}
    experiments.build("accelerated-stream", options, seed=0)
    (stream, heads) = seen[0]
    adapters = sum(p.numel() for p in stream.adapters.parameters())
    assert sum(p.numel() for p in heads["bottleneck"].parameters()) == adapters
    assert heads["affine"].weight.numel() == adapters


def test_the_exits_loss_is_that_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one layer before the exit the two have the same terms."""
    seen: list[AcceleratedStream] = []
    monkeypatch.setattr(module, "_agreement", lambda stream, *rest: seen.append(stream) or {})
    experiments.build("accelerated-stream", {**TINY, "exit_layer": 1, "rate": 4, "steps": 4}, seed=0)
    stream = seen[0]
    streams = stream(torch.arange(16)[None])
    distance = module._distance(stream, streams.fast[1], streams.slow[4], stream.logits(streams.slow[4]))
    torch.testing.assert_close(distance, stream.loss(streams))
