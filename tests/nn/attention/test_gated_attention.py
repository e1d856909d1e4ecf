from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention

from assay.errors import UserError
from assay.nn.attention.gated_attention import GatedAttention
from assay.nn.attention.softmax import SoftmaxAttention
from assay.nn.mixer import mixers
from assay.nn.norm import norms
from assay.nn.position import Positions
from assay.nn.position.rotary import Rotary

HIDDEN, DIM = 20, 6
GRANULARITIES = ["elementwise", "headwise"]
Granularity = Literal["elementwise", "headwise"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(name: str, num_heads: int, num_kv_heads: int, options: dict[str, Any]) -> Any:
    return mixers.build(
        name,
        options,
        hidden_size=HIDDEN,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=DIM,
        layer=0,
        norm=lambda size: norms.build("rms-norm", hidden_size=size),
    ).double()


def make(
    granularity: str = "elementwise", num_heads: int = 4, num_kv_heads: int = 2, seed: int = 1, **options: Any
) -> GatedAttention:
    mixer = build("gated-attention", num_heads, num_kv_heads, {"granularity": granularity, **options})
    for index, parameter in enumerate(mixer.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=seed + index) / 2)
    return mixer


def ungated(mixer: GatedAttention, **options: Any) -> SoftmaxAttention:
    """The same attention without its gate."""
    heads, shared = mixer.query.out_features // DIM, mixer.key.out_features // DIM
    plain = build("softmax", heads, shared, options)
    plain.load_state_dict(
        {name: value for name, value in mixer.state_dict().items() if "gate_projection" not in name}
    )
    return plain


def parts(mixer: GatedAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention probabilities, values (both per query head) and gates, all [batch, heads, time, ...]."""
    heads, shared = mixer.query.out_features // DIM, mixer.key.out_features // DIM
    q = mixer.query(x).unflatten(-1, (heads, DIM)).transpose(1, 2)
    k = mixer.key(x).unflatten(-1, (shared, DIM)).transpose(1, 2).repeat_interleave(heads // shared, dim=1)
    v = mixer.value(x).unflatten(-1, (shared, DIM)).transpose(1, 2).repeat_interleave(heads // shared, dim=1)
    hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    p = (q @ k.mT / DIM**0.5).masked_fill(hidden, -torch.inf).softmax(-1)
    gate = mixer.gate_projection(x).unflatten(-1, (heads, -1)).transpose(1, 2).sigmoid()
    return p, v, gate


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_zero_gate_weights_halve_the_attention(granularity: str) -> None:
    mixer, x = make(granularity), draw(2, 5, HIDDEN)
    mixer.gate_projection.weight.data.zero_()
    assert torch.equal(mixer(x, Positions()), ungated(mixer)(x, Positions()) / 2)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_gate_wide_open_is_no_gate_and_a_shut_one_writes_nothing(granularity: str) -> None:
    mixer, x = make(granularity, qkv_bias=True), draw(2, 5, HIDDEN)
    mixer.gate_projection.bias.data.fill_(torch.inf)
    assert torch.equal(mixer(x, Positions()), ungated(mixer, qkv_bias=True)(x, Positions()))
    mixer.gate_projection.bias.data.fill_(-torch.inf)
    assert torch.equal(mixer(x, Positions()), torch.zeros_like(x))


def test_equal_columns_inside_a_head_are_a_headwise_gate() -> None:
    headwise, x = make("headwise"), draw(2, 5, HIDDEN)
    elementwise = make("elementwise")
    state = headwise.state_dict()
    state["gate_projection.weight"] = state["gate_projection.weight"].repeat_interleave(DIM, dim=0)
    elementwise.load_state_dict(state)
    torch.testing.assert_close(elementwise(x, Positions()), headwise(x, Positions()), rtol=1e-12, atol=1e-14)


@settings(max_examples=15, deadline=None)
@given(
    granularity=st.sampled_from(GRANULARITIES),
    shared=st.integers(1, 3),
    group=st.integers(1, 3),
    time=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_is_the_definition(granularity: str, shared: int, group: int, time: int, seed: int) -> None:
    mixer, x = make(granularity, shared * group, shared, seed), draw(2, time, HIDDEN, seed=seed)
    p, v, gate = parts(mixer, x)
    expected = mixer.output(((p @ v) * gate).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x, Positions()), expected, rtol=1e-9, atol=1e-10)


def test_headwise_gate_on_the_probabilities_whose_rows_then_sum_to_the_gate() -> None:
    mixer, x = make("headwise"), draw(2, 5, HIDDEN)
    p, v, gate = parts(mixer, x)
    gated = gate * p
    torch.testing.assert_close(gated.sum(-1, keepdim=True), gate)
    assert gate.max() < 1
    expected = mixer.output((gated @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x, Positions()), expected, rtol=1e-10, atol=1e-12)


def test_headwise_gate_commutes_with_the_output_projection_of_its_head() -> None:
    mixer, x = make("headwise"), draw(2, 5, HIDDEN)
    p, v, gate = parts(mixer, x)
    per_head = mixer.output.weight.unflatten(1, (4, DIM))
    expected = sum(gate[:, h] * ((p @ v)[:, h] @ per_head[:, h].T) for h in range(4))
    torch.testing.assert_close(mixer(x, Positions()), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 2), (4, 1)])
def test_released_layout_with_gates_inside_the_query_projection(
    granularity: str, num_heads: int, num_kv_heads: int
) -> None:
    """The release views its fused projection as [time, H_kv, -1]: a group's queries, then that group's gates."""
    mixer, x = make(granularity, num_heads, num_kv_heads), draw(2, 5, HIDDEN)
    group = num_heads // num_kv_heads
    queries = mixer.query.weight.view(num_kv_heads, group * DIM, HIDDEN)
    gates = mixer.gate_projection.weight.view(num_kv_heads, -1, HIDDEN)
    fused = torch.cat((queries, gates), dim=1).reshape(-1, HIDDEN)
    extra = num_heads * (DIM if granularity == "elementwise" else 1)
    assert fused.shape[0] == num_heads * DIM + extra

    grouped = (x @ fused.T).view(2, 5, num_kv_heads, -1)
    query, score = grouped.split([group * DIM, extra // num_kv_heads], dim=-1)
    query = query.reshape(2, 5, num_heads, DIM).transpose(1, 2)
    score = score.reshape(2, 5, num_heads, -1)
    key, value = (
        linear(x).view(2, 5, num_kv_heads, DIM).transpose(1, 2).repeat_interleave(group, dim=1)
        for linear in (mixer.key, mixer.value)
    )
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    p = (query @ key.mT * DIM**-0.5).masked_fill(hidden, -torch.inf).softmax(-1)
    mixed = (p @ value).transpose(1, 2) * torch.sigmoid(score)
    released = mixed.reshape(2, 5, -1) @ mixer.output.weight.T
    torch.testing.assert_close(mixer(x, Positions()), released, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_is_the_attention_of_qwen3_next(num_kv_heads: int, bias: bool) -> None:
    """Its fused projection holds each head's queries, then that head's gates; its norms multiply by 1 + w."""
    config = Qwen3NextConfig(
        hidden_size=HIDDEN,
        num_attention_heads=4,
        num_key_value_heads=num_kv_heads,
        head_dim=DIM,
        attention_bias=bias,
        rms_norm_eps=1e-6,
        attn_implementation="eager",
    )
    theirs = Qwen3NextAttention(config, 0).double()
    ours = make("elementwise", 4, num_kv_heads, qk_norm=True, qkv_bias=bias, output_bias=bias)
    fused: dict[str, Tensor] = {}
    for name, query in ours.query.state_dict().items():
        gate = ours.gate_projection.state_dict()[name]
        both = (query.unflatten(0, (4, DIM)), gate.unflatten(0, (4, DIM)))
        fused[name] = torch.cat(both, dim=1).flatten(0, 1)
    theirs.q_proj.load_state_dict(fused)
    theirs.k_proj.load_state_dict(ours.key.state_dict())
    theirs.v_proj.load_state_dict(ours.value.state_dict())
    theirs.o_proj.load_state_dict(ours.output.state_dict())
    theirs.q_norm.weight.data.copy_(ours.query_norm.weight - 1)
    theirs.k_norm.weight.data.copy_(ours.key_norm.weight - 1)

    x, ids = draw(2, 7, HIDDEN), torch.arange(7)[None]
    rotation = Rotary(DIM).rotation(ids, torch.float64)
    embeddings = tuple(torch.cat((half, half), dim=-1)[:, 0] for half in rotation)
    mask = torch.full((7, 7), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    expected, _ = theirs(x, embeddings, mask)
    torch.testing.assert_close(ours(x, Positions(rotation)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_later_tokens_do_not_reach_earlier_ones(granularity: str) -> None:
    mixer, x = make(granularity), draw(1, 6, HIDDEN)
    y = mixer(x, Positions())
    changed = x.clone()
    changed[:, 4:] = draw(1, 2, HIDDEN, seed=5)
    again = mixer(changed, Positions())
    torch.testing.assert_close(again[:, :4], y[:, :4], rtol=1e-12, atol=1e-14)
    assert (again[:, 4:] - y[:, 4:]).abs().max() > 1e-3


def gradients(mixer: SoftmaxAttention, x: Tensor, token: int, towards: Tensor) -> dict[str, Tensor]:
    """Gradients of ⟨y_token, towards⟩ into queries, keys and values."""
    kept: dict[str, Tensor] = {}
    hooks = []
    for name in ("query", "key", "value"):

        def keep(module: Any, inputs: Any, result: Tensor, name: str = name) -> None:
            result.retain_grad()
            kept[name] = result

        hooks.append(getattr(mixer, name).register_forward_hook(keep))
    (mixer(x, Positions())[0, token] @ towards).backward()
    for hook in hooks:
        hook.remove()
    return {name: result.grad for name, result in kept.items()}


def test_gradient_into_the_values_is_scaled_by_the_gate_of_the_querying_token() -> None:
    mixer, x, towards = make("headwise", 1, 1), draw(1, 5, HIDDEN), draw(HIDDEN, seed=7)
    gate = parts(mixer, x)[2][0, 0]
    for token in range(5):
        gated, plain = (gradients(m, x, token, towards)["value"] for m in (mixer, ungated(mixer)))
        torch.testing.assert_close(gated, gate[token] * plain, rtol=1e-10, atol=1e-14)


def test_a_shut_gate_stops_the_gradient_of_its_head_and_token() -> None:
    mixer, x, towards = make("headwise", 2, 2), draw(1, 5, HIDDEN), draw(HIDDEN, seed=7)
    mixer.gate_projection.weight.data[1] = -1e5 * x[0, 3]
    found = gradients(mixer, x, 3, towards)
    for gradient in found.values():
        first, second = gradient.split(DIM, dim=-1)
        assert first.abs().max() > 1e-6
        assert torch.equal(second, torch.zeros_like(second))


@pytest.mark.parametrize(("granularity", "extra"), [("headwise", 32_768), ("elementwise", 4_194_304)])
def test_extra_parameters(granularity: Granularity, extra: int) -> None:
    with torch.device("meta"):
        sizes = (2048, 16, 4, 128, 0, torch.nn.RMSNorm)
        gated, plain = GatedAttention(*sizes, granularity=granularity), SoftmaxAttention(*sizes)
    count = [sum(p.numel() for p in mixer.parameters()) for mixer in (gated, plain)]
    assert count[0] - count[1] == extra


def test_gates_follow_the_bias_of_the_queries_and_have_no_norm() -> None:
    mixer = make("headwise", qkv_bias=True, qk_norm=True)
    assert mixer.gate_projection.bias.shape == (4,)
    assert make("headwise").gate_projection.bias is None
    assert {name.split(".")[0] for name, _ in mixer.named_parameters() if "norm" in name} == {
        "query_norm",
        "key_norm",
    }


def reference(mixer: GatedAttention, x: Tensor, position: str, gate: Callable[[Tensor], Tensor]) -> Tensor:
    """Attention with keys and values written out per query head, and ``gate`` applied at one place.

    ``gate`` takes [batch, time, heads, dim]; the layer's output is one head.
    """

    def at(place: str, y: Tensor) -> Tensor:
        return gate(y) if place == position else y

    heads, shared = mixer.query.out_features // DIM, mixer.key.out_features // DIM
    query = at("query", mixer.query(x).unflatten(-1, (heads, DIM)))
    key = at("key", mixer.key(x).unflatten(-1, (shared, DIM)))
    value = at("value", mixer.value(x).unflatten(-1, (shared, DIM)))
    group = torch.arange(heads) // (heads // shared)
    score = torch.einsum("bihd,bjhd->bhij", query, key[:, :, group]) / DIM**0.5
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    weights = score.masked_fill(later, -torch.inf).softmax(-1)
    mixed = at("attention", torch.einsum("bhij,bjhd->bihd", weights, value[:, :, group]))
    return at("output", mixer.output(mixed.flatten(2))[:, :, None]).flatten(2)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda z: 1 / (1 + (-z).exp()),
    "silu": lambda z: z / (1 + (-z).exp()),
    "ns-sigmoid": lambda z: (1 + 1 / (1 + (-z).exp())) / 2,
}


@settings(max_examples=60, deadline=None)
@given(
    position=st.sampled_from(["attention", "value", "key", "query", "output"]),
    granularity=st.sampled_from(GRANULARITIES),
    shared=st.booleans(),
    activation=st.sampled_from(list(FUNCTIONS)),
    form=st.sampled_from(["multiplicative", "additive"]),
    sizes=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    seed=st.integers(0, 2**31),
)
def test_every_position_granularity_and_form_is_its_definition(
    position: str, granularity: str, shared: bool, activation: str, form: str, sizes: tuple[int, int], seed: int
) -> None:
    if position == "output":
        granularity, shared = "elementwise", False
    options = {"position": position, "shared": shared, "activation": activation, "form": form}
    mixer, x = make(granularity, *sizes, seed, **options), draw(2, 5, HIDDEN, seed=seed)
    matrix = mixer.gate_projection.weight

    def gate(y: Tensor) -> Tensor:
        heads, size = y.shape[2:]
        rows = matrix.view(1 if shared else heads, -1, HIDDEN).expand(heads, -1, -1).expand(-1, size, -1)
        gates = FUNCTIONS[activation](torch.einsum("bti,hdi->bthd", x, rows))
        return y * gates if form == "multiplicative" else y + gates

    expected = reference(mixer, x, position, gate)
    torch.testing.assert_close(mixer(x, Positions()), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("activation", "form", "scale", "shift"),
    [
        ("sigmoid", "multiplicative", 0.5, 0.0),
        ("ns-sigmoid", "multiplicative", 0.75, 0.0),
        ("silu", "multiplicative", 0.0, 0.0),
        ("sigmoid", "additive", 1.0, 0.5),
        ("silu", "additive", 1.0, 0.0),
    ],
)
@pytest.mark.parametrize("position", ["attention", "value", "output"])
def test_what_zero_weights_make_of_the_attention(
    position: str, activation: str, form: str, scale: float, shift: float
) -> None:
    """A constant on each value is one on their mixture, as softmax weights sum to one."""
    mixer, x = make(position=position, activation=activation, form=form), draw(2, 5, HIDDEN)
    mixer.gate_projection.weight.data.zero_()
    shifted = shift if position == "output" else shift * mixer.output.weight.sum(-1)
    expected = scale * ungated(mixer)(x, Positions()) + shifted
    torch.testing.assert_close(mixer(x, Positions()), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("position", ["key", "query"])
def test_zero_weights_on_keys_or_queries_halve_the_scores(position: str) -> None:
    mixer, x = make(position=position), draw(2, 5, HIDDEN)
    mixer.gate_projection.weight.data.zero_()
    plain = ungated(mixer)
    plain.query.weight.data /= 2
    torch.testing.assert_close(mixer(x, Positions()), plain(x, Positions()), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("position", ["key", "query"])
def test_gates_stand_before_the_norms_of_queries_and_keys(position: str) -> None:
    """A norm takes away what multiplies a whole head."""
    mixer, x = make("headwise", position=position, qk_norm=True), draw(2, 5, HIDDEN)
    mixer.gate_projection.weight.data /= 10
    expected = ungated(mixer, qk_norm=True)(x, Positions())
    torch.testing.assert_close(mixer(x, Positions()), expected, rtol=1e-4, atol=1e-4)


def test_a_gate_on_the_values_belongs_to_the_token_that_is_attended_to() -> None:
    """Closing it takes that token's value away from all queries; on the attention's result, one query loses all."""
    x = draw(1, 5, HIDDEN)
    for position, silent in [("value", 3), ("attention", 3)]:
        mixer = make("headwise", 2, 2, position=position)
        mixer.gate_projection.weight.data[:] = -1e5 * x[0, silent]
        plain, y = ungated(mixer), mixer(x, Positions())
        if position == "attention":
            assert not y[0, silent].any()
        else:
            assert y[0, silent].any()
            value = mixer.project(x, Positions())[2]
            assert not value[0, :, silent].any()
            assert plain.project(x, Positions())[2][0, :, silent].all()


@pytest.mark.parametrize("options", [{"granularity": "headwise"}, {"shared": True}])
def test_the_output_has_no_heads(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no heads; with position='output'"):
        make(position="output", **options)


def test_unknown_granularity() -> None:
    with pytest.raises(UserError, match=r"granularity='tokenwise': .*'elementwise' or 'headwise'"):
        make("tokenwise")
