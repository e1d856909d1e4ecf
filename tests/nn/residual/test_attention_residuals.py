from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache

from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.hugging_face.loading import load
from assay.models.hugging_face.model import AssayForCausalLM
from assay.models.hugging_face.saving import save
from assay.nn.residual import residuals
from assay.nn.residual.attention_residuals import AttentionResiduals
from assay.optim import parameter_groups

EPS = 1e-6
SIZES = {"depth": 3, "hidden_size": 32, "num_heads": 4, "vocab_size": 61, "max_length": 64}
FORMS = [{"blocks": "full"}, {"blocks": 3}, {"blocks": 1}]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def make(num_sublayers: int, seed: int | None = 1, **options: object) -> AttentionResiduals:
    """Over four features; as it starts, or with drawn queries and gains."""
    stream = residuals.build("attention-residuals", options, hidden_size=4, num_sublayers=num_sublayers).double()
    for index, parameter in enumerate(stream.parameters()):
        if seed is not None:
            parameter += draw(4, seed=100 * seed + index)
    return stream


def run(stream: AttentionResiduals, x: Tensor, branches: list[Callable[[Tensor], Tensor]]) -> list[Tensor]:
    """What each sublayer reads, and the head last."""
    state, read = stream.start(x), []
    for sublayer, branch in enumerate(branches):
        read.append(stream.read(state, sublayer))
        state = stream.write(state, branch(read[-1]), sublayer)
    return [*read, stream.finish(state)]


def maps(count: int) -> list[Callable[[Tensor], Tensor]]:
    weights = [draw(4, 4, seed=50 + i) for i in range(count)]
    return [lambda h, weight=weight: torch.tanh(h @ weight) for weight in weights]


def logit(stream: AttentionResiduals, query: int, value: Tensor) -> Tensor:
    normed = nn.functional.rms_norm(value, (4,), stream.gains[query], EPS)
    return normed @ stream.queries[query]


def two_phases(stream: AttentionResiduals, x: Tensor, branches: list, size: int) -> list[Tensor]:
    """The paper's algorithm for inference: finished blocks for all queries of a block at once, with the statistics of
    an unfinished softmax, into which the block's own sum is merged layer by layer."""

    def finished(query: int) -> tuple[Tensor, Tensor, Tensor]:
        logits = torch.stack([logit(stream, query, block) for block in blocks])
        top = logits.amax(0)
        weights = (logits - top).exp()
        return sum(w[..., None] * block for w, block in zip(weights, blocks, strict=True)), top, weights.sum(0)

    blocks, read = [x], []
    for first in range(0, len(branches), size):
        layers = range(first, min(first + size, len(branches)))
        phase_one = {layer: finished(layer) for layer in layers}
        partial = None
        for layer in layers:
            mixed, top, total = phase_one[layer]
            if partial is not None:
                own = logit(stream, layer, partial)
                new_top = torch.maximum(top, own)
                old_share, own_share = (top - new_top).exp(), (own - new_top).exp()
                mixed = old_share[..., None] * mixed + own_share[..., None] * partial
                total = old_share * total + own_share
            read.append(mixed / total[..., None])
            y = branches[layer](read[-1])
            partial = y if partial is None else partial + y
        blocks.append(partial)
    mixed, _, total = finished(len(branches))
    return [*read, mixed / total[..., None]]


@pytest.mark.parametrize(("blocks", "size"), [("full", 1), (7, 1), (9, 1), (4, 2), (3, 3), (2, 4), (1, 7)])
def test_every_form_is_the_algorithm_in_two_phases(blocks: int | str, size: int) -> None:
    """Seven sublayers: the last block is the shorter one where their number does not divide."""
    stream, x = make(7, blocks=blocks), draw(2, 3, 4)
    for ours, theirs in zip(run(stream, x, maps(7)), two_phases(stream, x, maps(7), size), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_mixture_is_that_of_attn_res() -> None:
    attn_res = pytest.importorskip("attn_res")
    stream = make(5, blocks="full")
    operator = attn_res.AttnResOperator(4, eps=EPS).double()
    state, sources = stream.start(draw(2, 3, 4)), [draw(2, 3, 4)]
    for sublayer in range(6):
        operator.pseudo_query.data = (stream.queries[sublayer] * stream.gains[sublayer]).detach()
        theirs = operator(torch.stack(sources))
        torch.testing.assert_close(stream.read(state, sublayer), theirs, rtol=1e-6, atol=1e-6)
        sources.append(draw(2, 3, 4, seed=sublayer + 1))
        state = stream.write(state, sources[-1], sublayer) if sublayer < 5 else state


def test_a_worked_example() -> None:
    stream = residuals.build("attention-residuals", {"eps": 0.0}, hidden_size=2, num_sublayers=1).double()
    stream.queries[1].data = torch.tensor([1.0, 0.0], dtype=torch.float64)
    state = stream.start(torch.tensor([[[3.0, 4.0]]], dtype=torch.float64))
    state = stream.write(state, torch.tensor([[[0.0, 2.0]]], dtype=torch.float64), 0)
    weights = torch.tensor([[[0.7003, 0.2997]]], dtype=torch.float64)
    torch.testing.assert_close(stream.weights(state, -1), weights, atol=5e-5, rtol=0)
    expected = torch.tensor([[[2.1008, 3.4005]]], dtype=torch.float64)
    torch.testing.assert_close(stream.finish(state), expected, atol=5e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_it_starts_as_the_plain_residual_network(form: dict) -> None:
    """The mean of the sources is their sum over a number, which norms without ε do not see."""
    config = {**SIZES, "norm": {"name": "rms-norm", "eps": 1e-30}}
    plain = Decoder(ModelConfig.parse(config)).double()
    ours = Decoder(ModelConfig.parse({**config, "residual": {"name": "attention-residuals", **form}})).double()
    ours.load_state_dict(plain.state_dict(), strict=False)
    ids = torch.arange(20)[None] % 61
    torch.testing.assert_close(ours(ids), plain(ids), rtol=1e-9, atol=1e-9)
    ours.residual.queries[3][0] = 0.5
    assert not torch.allclose(ours(ids), plain(ids))


def test_the_first_sublayer_reads_the_embedding() -> None:
    x = draw(2, 3, 4)
    for form in FORMS:
        torch.testing.assert_close(run(make(6, **form), x, maps(6))[0], x)


@settings(max_examples=25, deadline=None)
@given(sublayers=st.integers(1, 9), blocks=st.integers(1, 9), seed=st.integers(0, 1000))
def test_what_is_read_is_between_its_sources(sublayers: int, blocks: int, seed: int) -> None:
    """Weights are positive and sum to one, so no mixture is longer than the longest source, and what is kept are the
    embedding and at most N sums."""
    stream = make(sublayers, seed=seed + 1, blocks=blocks)
    state = stream.start(draw(1, 2, 4, seed=seed))
    for sublayer in range(sublayers + 1):
        weights, mixed = stream.weights(state, sublayer), stream.read(state, sublayer)
        assert (weights > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, dtype=torch.float64))
        longest = torch.stack(state.values).norm(dim=-1).amax(0)
        assert (mixed.norm(dim=-1) <= longest * (1 + 1e-12)).all()
        if sublayer < sublayers:
            state = stream.write(state, 3.0 * torch.tanh(mixed) + sublayer, sublayer)
    assert len(state.values) - 1 == -(-sublayers // stream.block_size) <= blocks


def test_a_source_is_judged_by_its_direction_alone() -> None:
    x, y = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    for scale in (0.1, 7.0):
        states = []
        for value in (y, scale * y):
            stream = make(2, blocks="full", eps=0.0)
            states.append(stream.write(stream.start(x), value, 0))
        torch.testing.assert_close(stream.weights(states[0], 1), stream.weights(states[1], 1))


def test_queries_are_not_decayed_and_start_at_zero() -> None:
    stream = make(4, seed=None)
    assert [query.abs().max().item() for query in stream.queries] == [0.0] * 5
    assert [group["decay"] for group in parameter_groups(stream)] == [False]
    assert {group["role"] for group in parameter_groups(stream)} == {"vector"}


def test_gradients_reach_every_query_and_source() -> None:
    """All but the first query, which has a single source to choose from."""
    stream, x = make(4, blocks="full"), draw(2, 3, 4).requires_grad_()
    run(stream, x, maps(4))[-1].square().sum().backward()
    assert stream.queries[0].grad.abs().max() < 1e-12
    assert all(query.grad.abs().max() > 1e-6 for query in stream.queries[1:])
    assert x.grad.abs().min() > 0


@pytest.fixture(params=FORMS, ids=str)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    config = {**SIZES, "residual": {"name": "attention-residuals", **request.param}}
    decoder = Decoder(ModelConfig.parse(config)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return decoder


@torch.no_grad()
def test_one_token_at_a_time_is_the_whole(decoder: Decoder) -> None:
    ids, cache = torch.arange(12)[None] * 5 % 61, DynamicCache()
    model = AssayForCausalLM.from_decoder(decoder.double())
    pieces = [model(piece, past_key_values=cache).logits for piece in ids.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), decoder(ids), atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(decoder: Decoder, tmp_path: object) -> None:
    ids = torch.arange(12)[None]
    save(decoder, f"{tmp_path}/model")
    again = load(f"{tmp_path}/model")
    assert again.config == decoder.config
    assert torch.equal(again(ids), decoder(ids))
    theirs = AutoModelForCausalLM.from_pretrained(f"{tmp_path}/model")
    assert torch.equal(theirs(ids).logits, decoder(ids))


def test_one_graph_holds_the_network(decoder: Decoder) -> None:
    compiled = torch.compile(decoder, backend="eager", fullgraph=True)
    ids = torch.arange(12)[None]
    torch.testing.assert_close(compiled(ids), decoder(ids))


@torch.no_grad()
def test_bfloat16_stays_bfloat16(decoder: Decoder) -> None:
    ids = torch.arange(12)[None]
    expected = decoder(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = decoder(ids)
    half = decoder.bfloat16()(ids)
    assert half.dtype == torch.bfloat16
    for logits in (autocast, half):
        assert (logits.float() - expected).norm() < 0.1 * expected.norm()


def test_placements_that_norm_the_stream_are_refused() -> None:
    for placement in ("post-ln", {"name": "mix-ln", "post_share": 0.5}):
        config = ModelConfig.parse({**SIZES, "placement": placement, "residual": "attention-residuals"})
        with pytest.raises(UserError, match=r"keeps no running sum .* such as 'pre-ln' or 'peri-ln'"):
            Decoder(config)(torch.zeros(1, 2, dtype=torch.long))


def test_wrong_numbers_of_blocks() -> None:
    for wrong in (0, -1, "most"):
        with pytest.raises(UserError, match=f"option blocks={wrong!r}: .*'full'"):
            residuals.build("attention-residuals", {"blocks": wrong}, hidden_size=4, num_sublayers=4)
