from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from assay.models import Decoder
from assay.models.decoder import Sublayer
from assay.nn.placement import Placement, placements
from assay.nn.position import Positions


def test_a_norm_on_the_input_of_each_branch_and_one_before_the_head() -> None:
    rule = placements.build("pre-ln")
    assert [rule.at(layer, 12) for layer in range(12)] == [Placement(input=True)] * 12
    assert rule.final_norm
    assert not rule.embedding_norm


def test_worked_number(sublayer: Callable[..., Sublayer], decoder: Callable[..., Decoder]) -> None:
    half = sublayer(Placement(input=True), lambda x: 10 * x, 2)
    y = half(decoder("pre-ln").residual, torch.tensor([3.0, -1.0], dtype=torch.float64))
    expected = torch.tensor([16.4164, -5.4721], dtype=torch.float64)
    torch.testing.assert_close(y, expected, atol=5e-5, rtol=0)


def test_is_the_layer_of_llama(decoder: Callable[..., Decoder]) -> None:
    model = decoder("pre-ln", depth=1, num_kv_heads=1, intermediate_size=20, position="rotary", max_length=16)
    ours = model.layers[0]
    config = LlamaConfig(
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=20,
        rms_norm_eps=1e-6,
        attn_implementation="eager",
    )
    theirs = LlamaDecoderLayer(config, 0).double()
    for other, mine in (
        (theirs.self_attn.q_proj, ours.mixer.branch.query),
        (theirs.self_attn.k_proj, ours.mixer.branch.key),
        (theirs.self_attn.v_proj, ours.mixer.branch.value),
        (theirs.self_attn.o_proj, ours.mixer.branch.output),
        (theirs.mlp.gate_proj, ours.mlp.branch.gate),
        (theirs.mlp.up_proj, ours.mlp.branch.up),
        (theirs.mlp.down_proj, ours.mlp.branch.down),
        (theirs.input_layernorm, ours.mixer.input_norm),
        (theirs.post_attention_layernorm, ours.mlp.input_norm),
    ):
        other.load_state_dict(mine.state_dict())
    x, places = torch.randn(2, 6, 8, dtype=torch.float64), torch.arange(6)[None]
    mask = torch.full((6, 6), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    expected = theirs(x, mask, position_embeddings=LlamaRotaryEmbedding(config)(x, places))
    told = Positions(model.position.rotation(places, torch.float64))
    torch.testing.assert_close(ours(model.residual, x, told, None), expected, rtol=1e-5, atol=1e-5)


def test_is_the_layer_of_torch(
    decoder: Callable[..., Decoder],
    torch_layer: Callable[..., nn.TransformerEncoderLayer],
    torch_like: dict[str, Any],
) -> None:
    model = decoder("pre-ln", depth=1, **torch_like)
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    expected = torch_layer(model.layers[0], True)(x, src_mask=mask)
    y = model.layers[0](model.residual, x, Positions(), None)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)


def test_silent_branches_leave_the_stream_alone(
    decoder: Callable[..., Decoder], streams: Callable[..., list[Tensor]], ids: Tensor
) -> None:
    model = decoder("pre-ln")
    for layer in model.layers:
        layer.mixer.branch.output.weight.data.zero_()
        layer.mlp.branch.down.weight.data.zero_()
    for state in streams(model, ids):
        assert torch.equal(state, model.embedding(ids))
    assert torch.equal(model.hidden(ids), model.final_norm(model.embedding(ids)))
