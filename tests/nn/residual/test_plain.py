from __future__ import annotations

import torch
from torch import nn

from assay.nn.residual import ResidualStream, residuals


def test_adds_each_branch_and_keeps_the_rest() -> None:
    stream = residuals.build("plain", hidden_size=3, num_sublayers=2)
    assert type(stream) is ResidualStream
    assert not list(stream.parameters())
    x, y, z = torch.randn(3, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    state = stream.start(x)
    assert torch.equal(stream.read(state, 0), x)
    state = stream.write(state, y, 0)
    assert torch.equal(stream.read(state, 1), x + y)
    state = stream.write(state, z, 1)
    assert torch.equal(stream.finish(state), x + y + z)


def test_normalize_norms_the_stream_itself() -> None:
    stream, norm = ResidualStream(), nn.LayerNorm(3)
    state = stream.start(torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(stream.finish(stream.normalize(state, norm)), norm(state))
