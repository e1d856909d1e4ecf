from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.nn.attention.relu_attention import ReLUAttention
from assay.nn.position import Positions

HIDDEN, DIM = 12, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(num_heads: int = 2, num_kv_heads: int = 2, seed: int = 1, **options: Any) -> ReLUAttention:
    mixer = ReLUAttention(HIDDEN, num_heads, num_kv_heads, DIM, 0, torch.nn.LayerNorm, **options).double()
    for index, parameter in enumerate(mixer.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=seed + index))
    return mixer


@settings(max_examples=15, deadline=None)
@given(shared=st.integers(1, 2), group=st.integers(1, 2), masked=st.booleans(), seed=st.integers(0, 2**31))
def test_is_the_definition_one_pair_of_tokens_at_a_time(shared: int, group: int, masked: bool, seed: int) -> None:
    time, heads = 5, shared * group
    mixer, x = make(heads, shared, seed), draw(1, time, HIDDEN, seed=seed)
    seen = torch.ones(time, time, dtype=torch.bool).tril()
    if masked:
        seen &= (draw(time, time, seed=seed + 99) > 0) | torch.eye(time, dtype=torch.bool)
    result = torch.zeros(time, heads, DIM, dtype=torch.float64)
    for h in range(heads):
        queries, common = slice(h * DIM, (h + 1) * DIM), slice(h // group * DIM, (h // group + 1) * DIM)
        for i in range(time):
            for j in range(time):
                score = (mixer.query(x[0, i])[queries] @ mixer.key(x[0, j])[common]).item() / 2
                if seen[i, j] and score > 0:
                    result[i, h] += score * mixer.value(x[0, j])[common] / seen[i].sum().item()
    y = mixer(x, Positions(mask=seen[None, None] if masked else None))
    torch.testing.assert_close(y[0], mixer.output(result.flatten(1)), rtol=1e-9, atol=1e-10)


def test_scores_below_zero_give_nothing() -> None:
    mixer, x = make(), draw(1, 5, HIDDEN)
    mixer.key.weight.data.copy_(-mixer.query.weight)
    query, key, _ = mixer.project(x, Positions())
    above = -mixer.scores(query, key)[0].diagonal(dim1=-2, dim2=-1)
    assert (above > 0).all()
    alone = mixer(x[:, :1], Positions())
    assert not alone.any()


def test_weights_grow_with_the_scores_without_bound() -> None:
    """Twice the query, twice the output: nothing is normalised."""
    mixer, x = make(), draw(1, 5, HIDDEN)
    y = mixer(x, Positions())
    mixer.query.weight.data *= 2
    torch.testing.assert_close(mixer(x, Positions()), 2 * y, rtol=1e-12, atol=1e-14)


def test_equal_scores_average_the_values_that_are_seen() -> None:
    mixer, x = make(1, 1, qkv_bias=True), draw(1, 4, HIDDEN)
    for projection in (mixer.query, mixer.key):
        projection.weight.data.zero_()
        projection.bias.data.fill_(1.0)
    expected = mixer.value(x).cumsum(1) / torch.arange(1, 5)[:, None] * DIM / DIM**0.5
    torch.testing.assert_close(mixer(x, Positions()), mixer.output(expected), rtol=1e-12, atol=1e-14)
