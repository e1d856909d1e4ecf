"""The contestants compute what they are named for."""

from __future__ import annotations

import torch

from assay.claims.benchmarks.matrix_nuclear_norm import matrix_nuclear_norms


def test_each_does_its_own_sum() -> None:
    found = {name: float(way()) for name, way in matrix_nuclear_norms(tokens=24, hidden_size=16).items()}  # type: ignore[arg-type]
    states = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    rows = states - states.mean(0)
    rows = rows / rows.norm(dim=1, keepdim=True)
    singular = torch.linalg.svdvals(rows)
    shares = singular.square() / 24
    assert abs(found["exact"] - singular.sum()) < 1e-3
    assert abs(found["entropy"] - float(-(shares * shares.log()).sum() / torch.tensor(16.0).log())) < 1e-4
    assert abs(found["mnn"] - rows.norm(dim=0).sort().values[-16:].sum() / 24) < 1e-4
