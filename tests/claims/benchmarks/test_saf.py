"""Every contestant takes a step of its own, and those with a penalty have one."""

from __future__ import annotations

import torch

from assay.claims.benchmarks.saf import saf_step


def test_each_takes_its_own_step() -> None:
    contestants = saf_step(examples=16, batch_size=4, channels=4, size=4, depth=1)
    moved = {}
    for name, call in contestants.items():
        model = call.args[0]  # type: ignore[attr-defined]
        before = torch.nn.utils.parameters_to_vector(model.parameters()).clone()
        call()
        call()
        moved[name] = torch.nn.utils.parameters_to_vector(model.parameters()) - before
    assert all(move.abs().max() > 0 for move in moved.values())
    for one in moved:
        for other in moved:
            assert one == other or not torch.equal(moved[one], moved[other])
