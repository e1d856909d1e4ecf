"""Attention as transformers and assay compute it, with its weights summed up on the way.

The weights of a block of heads are there for as long as that block takes; what is left of them are a few numbers per
query or key. Transformers' models call the attention function of their configuration, so one more such function sees
queries, keys and values of every architecture that works that way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import PreTrainedModel

from assay.diagnostics.events import Attention
from assay.models.hugging_face.model import AssayForCausalLM
from assay.nn.attention.softmax import SoftmaxAttention, shared

OBSERVED = "assay_observed"
BLOCK = 2**18
"""Weights that are in memory at once, at most, unless one head of one text has more: few enough for a cache."""

QUARTERS = 4
"""Blocks of queries in a causal pass, none of which computes with keys after its last query."""

BOTTOM = -1e30
"""The logit of a key that is not seen: finite, so that its weight times it is zero."""

Listener = Callable[[Attention], None]
_listeners: dict[nn.Module, tuple[int, str, Listener]] = {}


def attend(
    layer: int,
    domain: str,
    query: Float[Tensor, "batch heads time dim"],
    key: Float[Tensor, "batch kv_heads time dim"],
    value: Float[Tensor, "batch kv_heads time vdim"],
    *,
    scale: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Attention:
    """softmax(Q Kᵀ · scale) V, in blocks of heads, and what is told of its weights.

    ``mask`` is true where a query sees a key, or is added to the logits; None is causal. ``softcap`` c makes the
    logits c·tanh(logit / c). ``sinks`` are logits of a key without a value.
    """
    batch, heads, time = query.shape[:3]
    norms = value.float().norm(dim=-1)
    key, value = shared(key, heads), shared(value, heads)
    largest = torch.full((batch, heads), -torch.inf, device=query.device)
    entropy, received = (torch.zeros(batch, heads, time, device=query.device) for _ in range(2))
    output = value.new_empty(batch, heads, time, value.shape[-1])
    for text, block, rows in itertools.product(range(batch), *_blocks(heads, time, causal=mask is None)):
        keys = slice(0, rows.stop if mask is None else time)
        logits = (query[text, block, rows] * scale) @ key[text, block, keys].mT
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = _masked(logits, None if mask is None else _of_block(mask, text, block), rows)
        largest[text, block] = torch.maximum(largest[text, block], logits.amax((-1, -2)))
        if sinks is not None:
            extra = sinks[block].to(logits).view(-1, 1, 1).expand(-1, logits.shape[1], 1)
            logits = torch.cat((logits, extra), -1)
        weights = logits.softmax(-1)
        entropy[text, block, rows] = _entropy(weights, logits)
        weights = weights[..., : keys.stop]
        received[text, block, keys] += weights.sum(-2)
        output[text, block, rows] = weights.to(value.dtype) @ value[text, block, keys]
    received /= torch.arange(time, 0, -1, device=query.device)
    return Attention(layer, domain, largest, entropy, received, norms, output)


def _blocks(heads: int, time: int, *, causal: bool) -> tuple[list[slice], list[slice]]:
    """Blocks of heads and of queries; in a causal pass early queries have fewer keys, so it has several of these."""
    queries = -(-time // QUARTERS) if causal else time
    return _slices(heads, max(1, BLOCK // (queries * time))), _slices(time, queries)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _of_block(mask: Tensor, text: int, block: slice) -> Tensor:
    """What of a mask is for these heads of one text; a mask may be one for all heads, and for all texts."""
    own = mask[text if len(mask) > 1 else 0]
    return own if len(own) == 1 else own[block]


def _masked(logits: Float[Tensor, "heads rows keys"], mask: Tensor | None, rows: slice) -> Tensor:
    """Float32 logits with a finite bottom where a key is not seen; without a mask, keys up to the query are."""
    logits = logits.float()
    if mask is None:
        rectangle = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device)
        return logits.masked_fill_(rectangle.triu(rows.start + 1), BOTTOM)
    if mask.dtype == torch.bool:
        return logits.masked_fill_(~mask, BOTTOM)
    return (logits + mask.float()).clamp_(min=BOTTOM)


def _entropy(weights: Tensor, logits: Tensor) -> Float[Tensor, "heads time"]:
    """ln Z − Σ w·logit, where ln Z comes from the largest weight: ln Z = logit_max − ln w_max."""
    normalizer = logits.amax(-1) - weights.amax(-1).log()
    return (normalizer - torch.linalg.vecdot(weights, logits)).clamp_(min=0.0)


@contextmanager
def listening(
    model: PreTrainedModel, layers: Mapping[nn.Module, int], domain: str, listener: Listener
) -> Iterator[None]:
    """While it lasts, ``listener`` hears of the attention in the layers to which ``layers`` assigns modules."""
    previous = model.config._attn_implementation
    switched = not isinstance(model, AssayForCausalLM) and model._can_set_attn_implementation()
    for module, layer in layers.items():
        _listeners[module] = layer, domain, listener
        if isinstance(module, SoftmaxAttention):
            module.mix = _observed_mix(module)  # type: ignore[method-assign]
    try:
        if switched:
            model.set_attn_implementation(OBSERVED)
        yield
    finally:
        if switched:
            model.set_attn_implementation(previous)
        for module in layers:
            _listeners.pop(module, None)
            if isinstance(module, SoftmaxAttention):
                module.__dict__.pop("mix", None)


def _observed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers' models call."""
    told = _listeners.get(module)
    if told is None or query.shape[2] != key.shape[2] or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    layer, domain, listener = told
    attention = attend(
        layer,
        domain,
        query,
        key,
        value,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        mask=attention_mask,
        softcap=options.get("softcap"),
        sinks=options.get("s_aux"),
    )
    listener(attention)
    return attention.output.transpose(1, 2).to(query.dtype).contiguous(), None


def _observed_mix(branch: SoftmaxAttention) -> Callable[..., Tensor]:
    """Instead of ``branch.mix``; an attention with weights of its own computes them once more."""
    original = type(branch).mix
    plain = original is SoftmaxAttention.mix and type(branch).scores is SoftmaxAttention.scores

    def mix(x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        layer, domain, listener = _listeners[branch]
        if plain:
            attention = attend(layer, domain, query, key, value, scale=branch.head_dim**-0.5, mask=mask)
            listener(attention)
            return attention.output
        output = original(branch, x, query, key, value, mask)
        listener(_of_weights(branch, layer, domain, x, query, key, value, mask, output))
        return output

    return mix


def _of_weights(
    branch: SoftmaxAttention,
    layer: int,
    domain: str,
    x: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    output: Tensor,
) -> Attention:
    """What is told of weights that need not sum to one: they are taken as shares of their row's absolute sum."""
    weights = branch.weights(x, query, key, mask).abs()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
    time = weights.shape[-1]
    scores = branch.scores(query, key).masked_fill(~branch.seen(query, key, mask), BOTTOM)
    return Attention(
        layer,
        domain,
        scores.amax((-1, -2)),
        torch.special.entr(weights).sum(-1),
        weights.sum(-2) / torch.arange(time, 0, -1, device=x.device),
        value.float().norm(dim=-1),
        output,
    )


AttentionInterface.register(OBSERVED, _observed)
AttentionMaskInterface.register(OBSERVED, sdpa_mask)
