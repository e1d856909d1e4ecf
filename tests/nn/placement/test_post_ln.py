from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assay.models import Decoder
from assay.models.decoder import Sublayer
from assay.nn.placement import Placement, placements
from assay.nn.position import Positions


def test_a_norm_on_the_stream_after_each_branch_and_none_elsewhere() -> None:
    rule = placements.build("post-ln")
    assert [rule.at(layer, 5) for layer in range(5)] == [Placement(stream=True)] * 5
    assert not rule.final_norm
    assert not rule.embedding_norm


def test_is_the_layer_of_torch(
    decoder: Callable[..., Decoder],
    torch_layer: Callable[..., nn.TransformerEncoderLayer],
    torch_like: dict[str, Any],
) -> None:
    model = decoder("post-ln", depth=1, **torch_like)
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    expected = torch_layer(model.layers[0], False)(x, src_mask=mask)
    y = model.layers[0](model.residual, x, Positions(), None)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)


def test_norm_of_the_sum(sublayer: Callable[..., Sublayer], decoder: Callable[..., Decoder]) -> None:
    x = torch.tensor([3.0, -1.0], dtype=torch.float64)
    half = sublayer(Placement(stream=True), lambda x: torch.stack((x[1], -10 * x[0])), 2)
    y = half(decoder("post-ln").residual, x)
    total = torch.tensor([2.0, -31.0], dtype=torch.float64)
    torch.testing.assert_close(y, total / (total.square().mean()).sqrt(), rtol=1e-12, atol=0)
    assert torch.equal(half.branch.seen, x)


def test_every_token_of_the_stream_has_rms_one(
    decoder: Callable[..., Decoder],
    reset_gains: Callable[[nn.Module], None],
    streams: Callable[..., list[Tensor]],
    ids: Tensor,
) -> None:
    model = decoder("post-ln", eps=0.0)
    reset_gains(model)
    after = torch.stack(streams(model, ids)[1:])
    torch.testing.assert_close(after.square().mean(-1), torch.ones(6, 2, 5, dtype=torch.float64))
    assert torch.equal(model.hidden(ids), after[-1])
