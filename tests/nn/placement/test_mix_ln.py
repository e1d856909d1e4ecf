from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.errors import UserError
from assay.models import Decoder
from assay.nn.placement import Placement, placements
from assay.nn.position import Positions


def count_post(share: float, depth: int) -> int:
    rule = placements.build("mix-ln", {"post_share": share})
    kinds = [rule.at(layer, depth) for layer in range(depth)]
    post = kinds.count(Placement(stream=True))
    assert kinds == [Placement(stream=True)] * post + [Placement(input=True)] * (depth - post)
    return post


@pytest.mark.parametrize(("depth", "post"), [(1, 0), (4, 1), (6, 1), (7, 1), (12, 3), (24, 6), (32, 8)])
def test_the_first_quarter_by_default(depth: int, post: int) -> None:
    rule = placements.build("mix-ln")
    assert sum(rule.at(layer, depth).stream for layer in range(depth)) == post
    assert count_post(0.25, depth) == post


@settings(max_examples=100, deadline=None)
@given(depth=st.integers(1, 200), data=st.data())
def test_a_share_of_k_in_depth_is_k_layers(depth: int, data: st.DataObject) -> None:
    """Also where k / depth is rounded down in binary, as 0.29 · 100 = 28.999..."""
    post = data.draw(st.integers(0, depth))
    assert count_post(post / depth, depth) == post


@settings(max_examples=50, deadline=None)
@given(depth=st.integers(1, 100), thousandths=st.integers(0, 1000))
def test_other_shares_are_rounded_down(depth: int, thousandths: int) -> None:
    assert count_post(thousandths / 1000, depth) == thousandths * depth // 1000


def test_a_final_norm_and_none_on_the_embedding() -> None:
    rule = placements.build("mix-ln")
    assert rule.final_norm
    assert not rule.embedding_norm


def test_share_zero_is_pre_ln_bit_for_bit(decoder: Callable[..., Decoder], ids: Tensor) -> None:
    mixed, pre = decoder({"name": "mix-ln", "post_share": 0}), decoder("pre-ln", seed=1)
    pre.load_state_dict(mixed.state_dict())
    assert torch.equal(mixed(ids), pre(ids))


def test_share_one_is_post_ln_and_one_more_norm(decoder: Callable[..., Decoder], ids: Tensor) -> None:
    mixed, post = decoder({"name": "mix-ln", "post_share": 1}), decoder("post-ln", seed=1)
    state = mixed.state_dict()
    gain = state.pop("final_norm.weight")
    post.load_state_dict(state)
    x = post.hidden(ids)
    normed = gain * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(mixed.hidden(ids), normed)


def test_is_torchs_layers_with_the_norm_last_then_first(
    decoder: Callable[..., Decoder],
    torch_layer: Callable[..., nn.TransformerEncoderLayer],
    torch_like: dict[str, Any],
    ids: Tensor,
) -> None:
    model = decoder({"name": "mix-ln", "post_share": 0.5}, depth=4, **torch_like)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    x = model.embedding(ids)
    for index, layer in enumerate(model.layers):
        x = torch_layer(layer, index >= 2)(x, src_mask=mask)
    expected = nn.functional.layer_norm(x, (8,), model.final_norm.weight, model.final_norm.bias)
    torch.testing.assert_close(model.hidden(ids), expected, rtol=1e-9, atol=1e-11)


def test_no_norm_at_the_switch(
    decoder: Callable[..., Decoder], streams: Callable[..., list[Tensor]], ids: Tensor
) -> None:
    model = decoder({"name": "mix-ln", "post_share": 0.5}, depth=4)
    seen = streams(model, ids)
    switch = model.layers[2].mixer
    normed = switch.input_norm(seen[4])
    torch.testing.assert_close(seen[5], seen[4] + switch.branch(normed, Positions()))


def test_parameters_are_those_of_pre_ln_at_other_places(decoder: Callable[..., Decoder]) -> None:
    mixed, pre = decoder("mix-ln", depth=4), decoder("pre-ln", depth=4)
    assert [p.shape for p in mixed.parameters()] == [p.shape for p in pre.parameters()]
    renamed = {
        name.replace("stream_norm", "input_norm") if name.startswith("layers.0.") else name
        for name, _ in mixed.named_parameters()
    }
    assert renamed == {name for name, _ in pre.named_parameters()}
    assert {name for name, _ in mixed.named_parameters() if "stream_norm" in name} == {
        "layers.0.mixer.stream_norm.weight",
        "layers.0.mlp.stream_norm.weight",
    }


@pytest.mark.parametrize("scale", [0.01, 1.0, 250.0])
def test_the_first_pre_ln_layer_reads_rms_one_whatever_the_embedding(
    decoder: Callable[..., Decoder],
    reset_gains: Callable[[nn.Module], None],
    streams: Callable[..., list[Tensor]],
    ids: Tensor,
    scale: float,
) -> None:
    model = decoder({"name": "mix-ln", "post_share": 0.5}, depth=4, eps=0.0)
    reset_gains(model)
    model.embedding.weight.data *= scale
    seen = streams(model, ids)
    ones = torch.ones(2, 5, dtype=torch.float64)
    for state in seen[1:5]:
        torch.testing.assert_close(state.square().mean(-1), ones)
    assert (seen[5].square().mean(-1) - ones).abs().max() > 1e-3


def test_the_scale_of_the_embedding_reaches_the_first_branches(decoder: Callable[..., Decoder], ids: Tensor) -> None:
    model = decoder("mix-ln", depth=4, eps=0.0)
    before = model.layers[0].mixer.branch.value(model.embedding(ids))
    seen: list[Tensor] = []
    hook = model.layers[0].mixer.branch.value.register_forward_hook(lambda *call: seen.append(call[2]))
    model.embedding.weight.data *= 2
    model(ids)
    hook.remove()
    assert torch.equal(seen[0], 2 * before)


@pytest.mark.parametrize("post_share", [0.25, 0.5, 1.0])
def test_silent_branches_leave_one_norm(
    decoder: Callable[..., Decoder],
    reset_gains: Callable[[nn.Module], None],
    ids: Tensor,
    post_share: float,
) -> None:
    model = decoder({"name": "mix-ln", "post_share": post_share}, depth=4, eps=0.0)
    reset_gains(model)
    for layer in model.layers:
        layer.mixer.branch.output.weight.data.zero_()
        layer.mlp.branch.down.weight.data.zero_()
    x = model.embedding(ids)
    torch.testing.assert_close(model.hidden(ids), x / x.square().mean(-1, keepdim=True).sqrt())


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_zero_to_one(share: float) -> None:
    with pytest.raises(UserError, match=r"post_share=.* is outside \[0, 1\]"):
        placements.build("mix-ln", {"post_share": share})
