from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from assay.models import Decoder
from assay.models.decoder import Sublayer
from assay.nn.placement import Placement, placements


def halves(model: Decoder) -> list[Sublayer]:
    return [half for layer in model.layers for half in (layer.mixer, layer.mlp)]


def test_the_factor_of_layer_l_is_one_over_root_l() -> None:
    rule = placements.build("layernorm-scaling")
    for layer in range(100):
        assert rule.at(layer, 100) == Placement(input=True, input_scale=pytest.approx((layer + 1) ** -0.5))
    assert rule.at(0, 100).input_scale == 1.0
    assert rule.final_norm
    assert not rule.embedding_norm


def test_both_sublayers_of_a_layer_have_its_factor_and_the_final_norm_none(
    decoder: Callable[..., Decoder], ids: Tensor
) -> None:
    model = decoder("layernorm-scaling", depth=4)
    expected = [number**-0.5 for number in (1, 1, 2, 2, 3, 3, 4, 4)]
    assert [half.input_scale for half in halves(model)] == pytest.approx(expected)
    last: list[Tensor] = []
    hook = model.final_norm.register_forward_hook(lambda module, inputs, result: last.append(inputs[0]))
    x = model.hidden(ids)
    hook.remove()
    unit = last[0] / (last[0].square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(x, model.final_norm.weight * unit)


@pytest.mark.parametrize(
    ("number", "expected"), [(1, [0.8485, 1.1314]), (4, [0.4243, 0.5657]), (9, [0.2828, 0.3771])]
)
def test_worked_numbers(
    sublayer: Callable[..., Sublayer],
    decoder: Callable[..., Decoder],
    number: int,
    expected: list[float],
) -> None:
    placement = placements.build("layernorm-scaling").at(number - 1, 12)
    half = sublayer(placement, lambda x: x, 2)
    half(decoder("layernorm-scaling").residual, torch.tensor([3.0, 4.0], dtype=torch.float64))
    read = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(half.branch.seen, read, atol=5.1e-5, rtol=0)


def test_a_branch_reads_an_rms_of_its_factor(
    decoder: Callable[..., Decoder], reset_gains: Callable[[nn.Module], None], ids: Tensor
) -> None:
    model = decoder("layernorm-scaling", depth=5, eps=0.0)
    reset_gains(model)
    seen: list[Tensor] = []
    hooks = [
        half.branch.register_forward_hook(lambda module, inputs, result: seen.append(inputs[0]))
        for half in halves(model)
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    for index, x in enumerate(seen):
        expected = torch.full((2, 5), (index // 2 + 1) ** -0.5, dtype=torch.float64)
        torch.testing.assert_close(x.square().mean(-1).sqrt(), expected)


def test_one_layer_is_pre_ln_bit_for_bit(decoder: Callable[..., Decoder], ids: Tensor) -> None:
    scaled, pre = decoder("layernorm-scaling", depth=1), decoder("pre-ln", depth=1, seed=1)
    pre.load_state_dict(scaled.state_dict())
    assert torch.equal(scaled(ids), pre(ids))


def test_with_every_factor_one_it_is_pre_ln_bit_for_bit(decoder: Callable[..., Decoder], ids: Tensor) -> None:
    scaled, pre = decoder("layernorm-scaling"), decoder("pre-ln", seed=1)
    pre.load_state_dict(scaled.state_dict())
    assert (scaled(ids) - pre(ids)).abs().max() > 1e-3
    for half in halves(scaled):
        half.input_scale = 1.0
    assert torch.equal(scaled(ids), pre(ids))


def test_the_factor_folds_into_the_gain(decoder: Callable[..., Decoder], ids: Tensor) -> None:
    """The same function; the gradient of the unfolded gain is the folded one's times the factor."""
    scaled, pre = decoder("layernorm-scaling", depth=4), decoder("pre-ln", depth=4, seed=1)
    pre.load_state_dict(scaled.state_dict())
    for half, other in zip(halves(scaled), halves(pre), strict=True):
        other.input_norm.weight.data *= half.input_scale
    logits, folded = scaled(ids), pre(ids)
    torch.testing.assert_close(logits, folded)
    logits.square().sum().backward()
    folded.square().sum().backward()
    for half, other in zip(halves(scaled), halves(pre), strict=True):
        torch.testing.assert_close(half.input_norm.weight.grad, half.input_scale * other.input_norm.weight.grad)


def test_is_llama_with_the_gains_of_layer_l_divided_by_root_l(decoder: Callable[..., Decoder], ids: Tensor) -> None:
    model = decoder("layernorm-scaling", depth=4, intermediate_size=20, position="rotary")
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        num_attention_heads=2,
        intermediate_size=20,
        num_hidden_layers=4,
        rms_norm_eps=1e-6,
        attn_implementation="eager",
    )
    llama = LlamaModel(config).double()
    llama.embed_tokens.load_state_dict(model.embedding.state_dict())
    llama.norm.load_state_dict(model.final_norm.state_dict())
    for number, (ours, theirs) in enumerate(zip(model.layers, llama.layers, strict=True), start=1):
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
        for norm, half in ((theirs.input_layernorm, ours.mixer), (theirs.post_attention_layernorm, ours.mlp)):
            norm.weight.data.copy_(half.input_norm.weight / number**0.5)
    torch.testing.assert_close(model.hidden(ids), llama(ids).last_hidden_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "depth", "variance"),
    [
        ("pre-ln", 24, 49.0),
        ("pre-ln", 32, 65.0),
        ("layernorm-scaling", 24, 8.55),
        ("layernorm-scaling", 32, 9.12),
    ],
)
def test_variance_after_independent_branches(
    sublayer: Callable[..., Sublayer],
    decoder: Callable[..., Decoder],
    name: str,
    depth: int,
    variance: float,
) -> None:
    """Each branch answers in a direction of its own, as large as what it reads: 1 + 2 Σ_l c_l²."""
    size = 2 * depth + 1
    directions = torch.eye(size, dtype=torch.float64) * size**0.5
    rule, plain = placements.build(name), decoder("pre-ln").residual
    state = directions[0]
    for index in range(2 * depth):
        answer = directions[index + 1]

        def branch(x: Tensor, answer: Tensor = answer) -> Tensor:
            return x.square().mean().sqrt() * answer

        state = sublayer(rule.at(index // 2, depth), branch, size)(plain, state)
    assert state.square().mean().item() == pytest.approx(variance, abs=5e-3)
