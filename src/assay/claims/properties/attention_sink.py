"""Attention sinks, and what goes with them: small values and large residuals at the first token.

With weights w, scores s and values v of a head, and h the residual stream after a layer, over the batch and the
queries i ≥ 1:

    first-token weight   mean of |w_i0|
    first-token share    mean of |w_i0| / Σ_j |w_ij|
    row entropy          mean of H(|w_i| / Σ_j |w_ij|) / ln(i + 1)
    logit gap            mean of s_i0 − mean of s_ij over 1 ≤ j < i
    value drain          ‖v_0‖ / mean of ‖v_j‖ over j ≥ 1
    residual peak        ‖h_0‖ / mean of ‖h_j‖ over j ≥ 1

Uniform attention has a first-token weight of mean 1 / (i + 1) and a row entropy of 1; without a sink, value drain and
residual peak are about 1. Xiao et al., 2023, arXiv:2309.17453; Guo et al., 2024, arXiv:2410.13835.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.claims.properties import properties
from assay.claims.streams import after_each_layer
from assay.errors import UserError
from assay.models import Decoder
from assay.nn.attention.softmax import SoftmaxAttention, shared
from assay.nn.position import Positions

T = TypeVar("T")
Queries = Bool[Tensor, "batch time"]
"""Which queries count; the first one never does."""


@properties.register("attention-sink")
def attention_sink(model: Decoder, ids: Int[Tensor, "batch time"]) -> dict[str, float]:
    """``first_token`` (share, mean over heads), ``strongest`` (share of one head), ``row_entropy`` and
    ``value_drain`` (means over heads), ``residual_peak`` (largest of a layer)."""
    share = first_token_share(model, ids)
    return {
        "first_token": share.mean().item(),
        "strongest": share.max().item(),
        "row_entropy": row_entropy(model, ids).mean().item(),
        "value_drain": value_drain(model, ids).mean().item(),
        "residual_peak": residual_peak(model, ids).max().item(),
    }


def first_token_weight(
    model: Decoder, ids: Int[Tensor, "batch time"], queries: Queries | None = None
) -> Float[Tensor, "layers heads"]:
    """The weight with which queries take the first token's value."""
    return _mean_of_rows(model, ids, queries, lambda weights: weights[..., 0])


def first_token_share(
    model: Decoder, ids: Int[Tensor, "batch time"], queries: Queries | None = None
) -> Float[Tensor, "layers heads"]:
    """That weight as a share of all weights of the query, which need not sum to one; 0 for one without weights."""
    return _mean_of_rows(model, ids, queries, lambda weights: _shares(weights)[..., 0])


def logit_gap(
    model: Decoder, ids: Int[Tensor, "batch time"], queries: Queries | None = None
) -> Float[Tensor, "layers heads"]:
    """By how much the score of the first token exceeds those of the others before the query."""
    chosen = _chosen(ids, queries)
    chosen[:, 1] = False

    def gap(attention: SoftmaxAttention, x: Tensor, positions: Positions) -> Tensor:
        query, key, _ = attention.project(x, positions)
        scores = attention.scores(query, key)
        others = scores.tril(-1)[..., 1:].sum(-1) / torch.arange(-1, ids.shape[1] - 1, device=ids.device).clamp(min=1)
        return ((scores[..., 0] - others) * chosen[:, None]).sum((0, 2)) / chosen.sum()

    return torch.stack(at_every_attention(model, ids, gap))


def row_entropy(
    model: Decoder, ids: Int[Tensor, "batch time"], queries: Queries | None = None
) -> Float[Tensor, "layers heads"]:
    """The entropy of a query's weights, as a share of that of uniform ones; 0 for a query without weights."""
    most = torch.arange(1, ids.shape[1] + 1, device=ids.device).log().clamp(min=1e-12)
    return _mean_of_rows(model, ids, queries, lambda weights: torch.special.entr(_shares(weights)).sum(-1) / most)


def value_drain(model: Decoder, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "layers kv_heads"]:
    """The norm of the first token's value beside that of the others, on average over the batch."""

    def drain(attention: SoftmaxAttention, x: Tensor, positions: Positions) -> Tensor:
        norms = attention.project(x, positions)[2].norm(dim=-1)
        return norms[..., 0].mean(0) / norms[..., 1:].mean((0, 2))

    return torch.stack(at_every_attention(model, ids, drain))


def residual_peak(model: Decoder, ids: Int[Tensor, "batch time"]) -> Float[Tensor, " layers"]:
    """The norm of the residual stream at the first token beside that at the others, after each layer."""

    def peak(state: Float[Tensor, "batch time hidden"]) -> Tensor:
        norms = state.norm(dim=-1)
        return norms[:, 0].mean() / norms[:, 1:].mean()

    return torch.stack(after_each_layer(model, ids, peak)).to(model.embedding.weight.dtype)


@torch.no_grad()
def at_every_attention(
    model: Decoder, ids: Int[Tensor, "batch time"], measure: Callable[[SoftmaxAttention, Tensor, Positions], T]
) -> list[T]:
    """What ``measure`` makes of each layer's attention and its input, in one pass over ``ids``.

    Raises ``UserError`` for a mixer that has no attention weights.
    """
    found: list[T] = []

    def keep(branch: Any, inputs: Any) -> None:
        if not isinstance(branch, SoftmaxAttention):
            raise UserError(f"layer {len(found)} mixes tokens by {type(branch).__name__}, without attention weights")
        found.append(measure(branch, inputs[0], inputs[1]))

    hooks = [layer.get_submodule("mixer.branch").register_forward_pre_hook(keep) for layer in model.layers]
    try:
        model.hidden(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def redirected(
    model: Decoder,
    heads: dict[int, list[int]],
    to: Literal["nothing", "first", "previous"],
    queries: Queries | None = None,
) -> Iterator[None]:
    """While it lasts, ``heads`` (by layer) attend to nothing, to the first token, or to the one before the query.

    ``queries`` limits that to some queries. It holds for passes over whole sequences, without a cache. What a head's
    removal costs, in loss on one kind of text, says whether it is active or dormant there.
    """
    branches: dict[int, Any] = {layer: model.layers[layer].get_submodule("mixer.branch") for layer in heads}
    try:
        for layer, branch in branches.items():
            branch.mix = _redirected_mix(branch, heads[layer], to, queries)
        yield
    finally:
        for branch in branches.values():
            branch.__dict__.pop("mix", None)


def _redirected_mix(
    branch: SoftmaxAttention, heads: list[int], to: str, queries: Queries | None
) -> Callable[..., Tensor]:
    def mix(x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        weights = branch.weights(x, query, key, mask)
        time = torch.arange(weights.shape[-1], device=weights.device)
        place = torch.zeros_like(time) if to == "first" else (time - 1).clamp(min=0)
        new = (time == place[:, None]).to(weights.dtype) * (to != "nothing")
        moved = torch.zeros(weights.shape[1], dtype=torch.bool, device=weights.device)
        moved[heads] = True
        where = moved[:, None, None] if queries is None else moved[:, None, None] & queries[:, None, :, None]
        return torch.where(where, new, weights) @ shared(value, query.shape[1])

    return mix


def _mean_of_rows(
    model: Decoder,
    ids: Int[Tensor, "batch time"],
    queries: Queries | None,
    of: Callable[[Float[Tensor, "batch heads time keys"]], Float[Tensor, "batch heads time"]],
) -> Float[Tensor, "layers heads"]:
    """The mean over the batch and the queries of a function of the absolute weights."""
    chosen = _chosen(ids, queries)

    def mean(attention: SoftmaxAttention, x: Tensor, positions: Positions) -> Tensor:
        query, key, _ = attention.project(x, positions)
        weights = attention.weights(x, query, key, positions.mask).abs()
        return (of(weights) * chosen[:, None]).sum((0, 2)) / chosen.sum()

    return torch.stack(at_every_attention(model, ids, mean))


def _shares(weights: Float[Tensor, "batch heads time keys"]) -> Float[Tensor, "batch heads time keys"]:
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)


def _chosen(ids: Int[Tensor, "batch time"], queries: Queries | None) -> Queries:
    chosen = torch.ones_like(ids, dtype=torch.bool) if queries is None else queries.clone()
    chosen[:, 0] = False
    return chosen
