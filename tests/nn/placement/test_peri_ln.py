from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer, Gemma2RotaryEmbedding

from assay.models import Decoder
from assay.models.decoder import Sublayer
from assay.nn.placement import Placement, placements
from assay.nn.position import Positions


def test_a_norm_on_both_sides_of_each_branch_and_one_before_the_head() -> None:
    rule = placements.build("peri-ln")
    assert [rule.at(layer, 4) for layer in range(4)] == [Placement(input=True, output=True)] * 4
    assert rule.final_norm
    assert not rule.embedding_norm
    assert placements.build("peri-ln", {"embedding_norm": True}).embedding_norm


def test_worked_number(sublayer: Callable[..., Sublayer], decoder: Callable[..., Decoder]) -> None:
    half = sublayer(Placement(input=True, output=True), lambda x: 10 * x, 2)
    y = half(decoder("peri-ln").residual, torch.tensor([3.0, -1.0], dtype=torch.float64))
    expected = torch.tensor([4.3416, -1.4472], dtype=torch.float64)
    torch.testing.assert_close(y, expected, atol=5e-5, rtol=0)


def test_is_the_layer_of_gemma2(decoder: Callable[..., Decoder]) -> None:
    """Its norms multiply by 1 + w."""
    model = decoder("peri-ln", depth=1, num_kv_heads=1, intermediate_size=20, position="rotary")
    ours = model.layers[0]
    config = Gemma2Config(
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=20,
        num_hidden_layers=1,
        query_pre_attn_scalar=4,
        attn_logit_softcapping=None,
        hidden_activation="silu",
        rms_norm_eps=1e-6,
        attn_implementation="eager",
    )
    theirs = Gemma2DecoderLayer(config, 0).double()
    for other, mine in (
        (theirs.self_attn.q_proj, ours.mixer.branch.query),
        (theirs.self_attn.k_proj, ours.mixer.branch.key),
        (theirs.self_attn.v_proj, ours.mixer.branch.value),
        (theirs.self_attn.o_proj, ours.mixer.branch.output),
        (theirs.mlp.gate_proj, ours.mlp.branch.gate),
        (theirs.mlp.up_proj, ours.mlp.branch.up),
        (theirs.mlp.down_proj, ours.mlp.branch.down),
    ):
        other.load_state_dict(mine.state_dict())
    for other, mine in (
        (theirs.input_layernorm, ours.mixer.input_norm),
        (theirs.post_attention_layernorm, ours.mixer.output_norm),
        (theirs.pre_feedforward_layernorm, ours.mlp.input_norm),
        (theirs.post_feedforward_layernorm, ours.mlp.output_norm),
    ):
        other.weight.data.copy_(mine.weight - 1)
    x, places = torch.randn(2, 6, 8, dtype=torch.float64), torch.arange(6)[None]
    mask = torch.full((6, 6), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    expected = theirs(x, position_embeddings=Gemma2RotaryEmbedding(config)(x, places), attention_mask=mask)
    told = Positions(model.position.rotation(places, torch.float64))
    torch.testing.assert_close(ours(model.residual, x, told, None), expected, rtol=1e-5, atol=1e-5)


def test_each_norm_has_a_gain_of_its_own(decoder: Callable[..., Decoder]) -> None:
    model = decoder("peri-ln", depth=2)
    gains = {name for name, _ in model.named_parameters() if name.endswith("norm.weight")}
    expected = {
        f"layers.{layer}.{half}.{place}_norm.weight"
        for layer in range(2)
        for half in ("mixer", "mlp")
        for place in ("input", "output")
    }
    assert gains == expected | {"final_norm.weight"}


def test_every_branch_adds_a_vector_of_rms_one(
    decoder: Callable[..., Decoder],
    reset_gains: Callable[[nn.Module], None],
    streams: Callable[..., list[Tensor]],
    ids: Tensor,
) -> None:
    model = decoder("peri-ln", eps=0.0)
    reset_gains(model)
    for before, after in pairwise(streams(model, ids)):
        step = (after - before).square().mean(-1)
        torch.testing.assert_close(step, torch.ones(2, 5, dtype=torch.float64))


@pytest.mark.parametrize(("half", "last"), [("mixer", "output"), ("mlp", "down")])
def test_the_size_of_the_last_matrix_of_a_branch_does_not_matter(
    decoder: Callable[..., Decoder], ids: Tensor, half: str, last: str
) -> None:
    model = decoder("peri-ln", eps=0.0)
    matrix = getattr(getattr(model.layers[1], half).branch, last).weight
    logits = model(ids)
    logits.square().sum().backward()
    size = matrix.norm() * matrix.grad.norm()
    assert size > 1e-3
    assert ((matrix * matrix.grad).sum() / size).abs() < 1e-10
    matrix.data *= 37.0
    torch.testing.assert_close(model(ids), logits)
    matrix.data *= -1.0
    assert (model(ids) - logits).abs().max() > 1e-3


def test_norm_of_the_stream_grows_at_most_linearly(
    decoder: Callable[..., Decoder], streams: Callable[..., list[Tensor]], ids: Tensor
) -> None:
    model = decoder("peri-ln", depth=5, eps=0.0)
    for layer in model.layers:
        for matrix in layer.parameters():
            if matrix.ndim == 2:
                matrix.data *= 100.0
    gain = max(half.output_norm.weight.abs().max() for layer in model.layers for half in (layer.mixer, layer.mlp))
    seen = streams(model, ids)
    for count, state in enumerate(seen):
        bound = seen[0].norm(dim=-1) + count * 8**0.5 * gain
        assert torch.all(state.norm(dim=-1) <= bound + 1e-9)


def test_zero_output_gains_make_the_network_the_identity(
    decoder: Callable[..., Decoder], streams: Callable[..., list[Tensor]], ids: Tensor
) -> None:
    model = decoder("peri-ln")
    for layer in model.layers:
        for half in (layer.mixer, layer.mlp):
            half.output_norm.weight.data.zero_()
    for state in streams(model, ids):
        assert torch.equal(state, model.embedding(ids))


def test_without_its_output_norms_it_is_pre_ln(
    decoder: Callable[..., Decoder], copy_in_order: Callable[..., None], ids: Tensor
) -> None:
    peri, pre = decoder("peri-ln"), decoder("pre-ln", seed=1)
    full = peri(ids)
    for layer in peri.layers:
        for half in (layer.mixer, layer.mlp):
            half.output_norm = None
    copy_in_order(peri, pre)
    assert torch.equal(pre(ids), peri(ids))
    assert (full - peri(ids)).abs().max() > 1e-3


def test_output_norm_alone_is_something_else(
    sublayer: Callable[..., Sublayer], decoder: Callable[..., Decoder]
) -> None:
    x = torch.tensor([3.0, -1.0], dtype=torch.float64)
    plain = decoder("peri-ln").residual
    alone = sublayer(Placement(output=True), torch.exp, 2)(plain, x)
    torch.testing.assert_close(alone, x + x.exp() / x.exp().square().mean().sqrt())
    both = sublayer(Placement(input=True, output=True), torch.exp, 2)(plain, x)
    unit = x / x.square().mean().sqrt()
    torch.testing.assert_close(both, x + unit.exp() / unit.exp().square().mean().sqrt())
    assert (alone - both).abs().max() > 0.05


def test_the_optional_norm_of_the_embedding(
    decoder: Callable[..., Decoder], streams: Callable[..., list[Tensor]], ids: Tensor
) -> None:
    model = decoder({"name": "peri-ln", "embedding_norm": True})
    start = streams(model, ids)[0]
    assert torch.equal(start, model.embedding_norm(model.embedding(ids)))
    assert decoder("peri-ln").embedding_norm is None
