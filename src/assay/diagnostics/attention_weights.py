"""Attention as transformers and assay compute it, with its weights summed up on the way.

The weights of a block of heads are there for as long as that block takes; what is left of them are a few numbers per
query or key. Transformers' models call the attention function of their configuration, so one more such function sees
queries, keys and values of every architecture that works that way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import PreTrainedModel

from assay.diagnostics.events import Attention
from assay.models.hugging_face.model import AssayForCausalLM
from assay.nn.attention.softmax import SoftmaxAttention, shared

OBSERVED = "assay_observed"
BLOCK = 2**22
"""Weights that are in memory at once, at most, unless one head of one text has more."""

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
    causal = torch.ones(time, time, dtype=torch.bool, device=query.device).triu(1) if mask is None else None
    later = torch.arange(time, 0, -1, device=query.device)
    size = max(1, BLOCK // (batch * time * time))
    largest, entropy, received, output = [], [], [], []
    for part in torch.arange(heads).split(size):
        block = slice(int(part[0]), int(part[-1]) + 1)
        logits = (query[:, block] * scale) @ key[:, block].mT
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = _masked(logits, causal, mask if mask is None or mask.shape[1] == 1 else mask[:, block])
        largest.append(logits.amax((-1, -2)))
        if sinks is not None:
            extra = sinks[block].to(logits).view(1, -1, 1, 1).expand(batch, -1, time, 1)
            logits = torch.cat((logits, extra), -1)
        weights = logits.softmax(-1)
        entropy.append(_entropy(weights, logits))
        weights = weights[..., :time]
        received.append(weights.sum(-2) / later)
        output.append(weights.to(value.dtype) @ value[:, block])
    return Attention(
        layer,
        domain,
        torch.cat(largest, 1),
        torch.cat(entropy, 1),
        torch.cat(received, 1),
        norms,
        torch.cat(output, 1),
    )


def _masked(logits: Tensor, causal: Bool[Tensor, "time time"] | None, mask: Tensor | None) -> Tensor:
    """Float32 logits with a finite bottom where a key is not seen."""
    logits = logits.float()
    if causal is not None:
        return logits.masked_fill_(causal, BOTTOM)
    assert mask is not None
    if mask.dtype == torch.bool:
        return logits.masked_fill_(~mask, BOTTOM)
    return (logits + mask.float()).clamp_(min=BOTTOM)


def _entropy(weights: Tensor, logits: Tensor) -> Float[Tensor, "batch heads time"]:
    """ln Z − Σ w·logit, where ln Z comes from the largest weight: ln Z = logit_max − ln w_max."""
    best = logits.max(-1, keepdim=True)
    normalizer = best.values[..., 0] - weights.gather(-1, best.indices)[..., 0].log()
    return (normalizer - torch.einsum("bhqk,bhqk->bhq", weights, logits)).clamp_(min=0.0)


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
