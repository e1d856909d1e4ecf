from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.claims.properties import properties
from assay.claims.properties.attention_logits import attention_logits, largest_logits
from assay.claims.properties.attention_sink import (
    attention_sink,
    first_token_share,
    first_token_weight,
    logit_gap,
    redirected,
    residual_peak,
    row_entropy,
    value_drain,
)
from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.nn.position import Positions

TIME = 7
MIXERS: list[Any] = [
    "softmax",
    "gated-attention",
    "relu-attention",
    "affine-scaled-attention",
    {"name": "ls-attention", "window": 3},
]


def build(mixer: Any = "softmax", **fields: Any) -> Decoder:
    sizes = {"depth": 2, "hidden_size": 16, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 11, "max_length": TIME}
    torch.manual_seed(0)
    model = Decoder(ModelConfig.parse({**sizes, "mixer": mixer, **fields})).double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    for layer in model.layers:
        for buffer in layer.mixer.branch.buffers():
            buffer.fill_(0.4)
    return model


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(11, (3, TIME), generator=torch.Generator().manual_seed(1))


def states(model: Decoder, ids: Tensor) -> list[tuple[Tensor, Tensor, Positions, Tensor]]:
    """Of each layer: the mixer's queries, keys and weights inputs, by going through the layers one by one."""
    place = torch.arange(TIME)[None]
    positions = Positions(model.position.rotation(place, torch.float64))
    h, found = model.embedding(ids), []
    for layer in model.layers:
        x = layer.mixer.input_norm(h)
        h = h + layer.mixer.branch(x, positions, None)
        h = h + layer.mlp.branch(layer.mlp.input_norm(h))
        found.append((x, h, positions, layer.mixer.branch))
    return found


def rows(model: Decoder, ids: Tensor) -> list[Tensor]:
    """Each layer's attention weights."""
    found = []
    for x, _, positions, branch in states(model, ids):
        query, key, _ = branch.project(x, positions)
        found.append(branch.weights(x, query, key, None))
    return found


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
def test_first_token_attention_and_entropy_one_row_at_a_time(mixer: Any, ids: Tensor) -> None:
    model = build(mixer)
    chosen = ids % 3 > 0
    weight, share, entropy = (f(model, ids, chosen) for f in (first_token_weight, first_token_share, row_entropy))
    assert weight.shape == share.shape == entropy.shape == (2, 4)
    for layer, weights in enumerate(rows(model, ids)):
        for head in range(4):
            firsts, shares, entropies = [], [], []
            for b in range(3):
                for i in range(1, TIME):
                    if chosen[b, i]:
                        row = weights[b, head, i, : i + 1].abs().tolist()
                        parts = [w / sum(row) for w in row] if any(row) else row
                        firsts.append(row[0])
                        shares.append(parts[0])
                        entropies.append(-sum(p * math.log(p) for p in parts if p > 0) / math.log(i + 1))
            for found, rows_ in ((weight, firsts), (share, shares), (entropy, entropies)):
                assert found[layer, head].item() == pytest.approx(sum(rows_) / len(rows_))


@torch.no_grad()
def test_logit_gap_value_drain_residual_peak_and_largest_logit_by_hand(ids: Tensor) -> None:
    model = build()
    gap, drain, peak, largest = (f(model, ids) for f in (logit_gap, value_drain, residual_peak, largest_logits))
    for layer, (x, h, positions, branch) in enumerate(states(model, ids)):
        query, key, value = branch.project(x, positions)
        for head in range(4):
            gaps, logits = [], []
            for b in range(3):
                for i in range(TIME):
                    scores = [(query[b, head, i] @ key[b, head // 2, j]).item() / 2 for j in range(i + 1)]
                    logits += [abs(s) for s in scores]
                    if i > 1:
                        gaps.append(scores[0] - sum(scores[1:i]) / (i - 1))
            assert gap[layer, head].item() == pytest.approx(sum(gaps) / len(gaps))
            assert largest[layer, head].item() == pytest.approx(max(logits))
        norms = value.square().sum(-1).sqrt().mean(0)
        torch.testing.assert_close(drain[layer], norms[:, 0] / norms[:, 1:].mean(-1))
        lengths = h.square().sum(-1).sqrt().mean(0)
        torch.testing.assert_close(peak[layer], lengths[0] / lengths[1:].mean())
    found = attention_logits(model, ids)
    assert found == {"largest": largest.max().item(), "typical": largest.median().item()}


def test_uniform_attention_has_full_entropy_and_no_gap(ids: Tensor) -> None:
    model = build()
    for layer in model.layers:
        nn.init.zeros_(layer.mixer.branch.query.weight)
    expected = torch.full((2, 4), sum(1 / (i + 1) for i in range(1, TIME)) / (TIME - 1)).double()
    torch.testing.assert_close(first_token_weight(model, ids), expected)
    torch.testing.assert_close(first_token_share(model, ids), expected)
    torch.testing.assert_close(row_entropy(model, ids), torch.ones(2, 4).double())
    assert not logit_gap(model, ids).any()
    assert not largest_logits(model, ids).any()


def test_a_sink_made_by_hand() -> None:
    """The first token alone has a key, of which every query has a large multiple; its value is nothing."""
    model = build(depth=1, position="none", norm="layer-norm", num_kv_heads=4)
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6]])
    branch = model.layers[0].mixer.branch
    for weight in (model.embedding.weight, model.layers[0].mlp.branch.down.weight):
        nn.init.zeros_(weight)
    with torch.no_grad():
        model.embedding.weight[0, :2] = torch.tensor([50.0, -50.0])
        model.embedding.weight[1:, 2:4] = torch.tensor([1.0, -1.0])
        for projection in (branch.query, branch.key, branch.value):
            projection.weight.zero_()
        branch.query.weight[::4, 2] = 10.0
        branch.key.weight[::4, 0] = 10.0
        branch.value.weight[:, 2] = 1.0
    found = attention_sink(model, ids)
    assert found["first_token"] == pytest.approx(1.0)
    assert found["strongest"] == pytest.approx(1.0)
    assert found["row_entropy"] == pytest.approx(0.0, abs=1e-6)
    assert found["value_drain"] == pytest.approx(0.0, abs=1e-6)
    assert found["residual_peak"] > 10
    assert logit_gap(model, ids).min() > 50


def test_a_head_that_attends_to_nothing_has_no_sink(ids: Tensor) -> None:
    model = build("relu-attention")
    for layer in model.layers:
        nn.init.zeros_(layer.mixer.branch.query.weight)
    assert not first_token_weight(model, ids).any()
    assert not first_token_share(model, ids).any()
    assert not row_entropy(model, ids).any()


def test_as_properties(ids: Tensor) -> None:
    model = build({"name": "ls-attention", "window": 3})
    for name in ("attention-sink", "attention-logits"):
        found = properties.build(name, {}, model=model, ids=ids, config=None)
        assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())


def test_scores_out_of_the_window_do_not_count(ids: Tensor) -> None:
    """With a window of one a short head sees the scores of tokens with themselves."""
    model = build({"name": "ls-attention", "window": 1, "num_long": 0}, depth=1)
    (x, _, positions, branch), *_ = states(model, ids)
    query, key, _ = branch.project(x, positions)
    own = branch.scores(query, key).diagonal(dim1=-2, dim2=-1).abs().amax((0, 2))
    torch.testing.assert_close(largest_logits(model, ids)[0], own)


class TestRedirected:
    @torch.no_grad()
    @pytest.mark.parametrize("mixer", MIXERS)
    def test_results_of_the_heads(self, mixer: Any, ids: Tensor) -> None:
        model = build(mixer)
        x, _, positions, branch = states(model, ids)[0]
        query, key, value = branch.project(x, positions)
        value = value.repeat_interleave(2, dim=1)
        before = branch.mix(x, query, key, branch.project(x, positions)[2], None)
        expected = {
            "nothing": torch.zeros_like(value),
            "first": value[:, :, :1].expand_as(value),
            "previous": value[:, :, [0, *range(TIME - 1)]],
        }
        chosen = ids % 2 == 0
        for to, whole in expected.items():
            for queries in (None, chosen):
                with redirected(model, {0: [1, 3]}, to, queries):  # type: ignore[arg-type]
                    after = branch.mix(x, query, key, branch.project(x, positions)[2], None)
                where = torch.ones_like(chosen) if queries is None else chosen
                torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])
                for head in (1, 3):
                    torch.testing.assert_close(after[:, head][where], whole[:, head][where])
                    torch.testing.assert_close(after[:, head][~where], before[:, head][~where])

    @torch.no_grad()
    def test_without_any_head_the_mixer_writes_nothing(self, ids: Tensor) -> None:
        model, silent = build(), build()
        for layer in silent.layers:
            nn.init.zeros_(layer.mixer.branch.output.weight)
        with redirected(model, {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}, "nothing"):
            torch.testing.assert_close(model(ids), silent(ids))

    @torch.no_grad()
    def test_ends_with_its_block_even_by_an_error(self, ids: Tensor) -> None:
        model = build()
        expected = model(ids)

        def fail() -> None:
            with redirected(model, {0: [0], 1: [2]}, "first"):
                assert not torch.equal(model(ids), expected)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert torch.equal(model(ids), expected)


def test_a_mixer_without_weights(ids: Tensor) -> None:
    model = build()

    class Nothing(nn.Module):
        def forward(self, x: Tensor, positions: Positions, cache: Any = None) -> Tensor:
            return x

    model.layers[1].mixer.branch = Nothing()
    with pytest.raises(UserError, match="layer 1 mixes tokens by Nothing, without attention weights"):
        attention_sink(model, ids)
    assert not model.layers[0].mixer.branch._forward_pre_hooks
