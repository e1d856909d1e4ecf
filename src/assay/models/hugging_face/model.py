"""A decoder that transformers can run, generate with, train and save."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import initialization
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from assay.errors import UserError
from assay.models.decoder import Decoder
from assay.models.hugging_face.config import AssayConfig
from assay.models.hugging_face.loading import skeleton


class AssayForCausalLM(PreTrainedModel, GenerationMixin):
    """``decoder`` behind the interface of transformers' causal language models."""

    config_class = AssayConfig
    base_model_prefix = "decoder"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["Layer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    def __init__(self, config: AssayConfig, decoder: Decoder | None = None) -> None:
        super().__init__(config)
        self.decoder = Decoder(config.model_config()) if decoder is None else decoder
        self.post_init()

    @classmethod
    def from_decoder(cls, decoder: Decoder, **attributes: Any) -> Self:
        """A model around ``decoder`` itself, not a copy. ``attributes`` of its configuration: ``eos_token_id`` .."""
        config = AssayConfig(decoder.config.dump(), **attributes)
        with initialization.no_init_weights():
            return cls(config, decoder).train(decoder.training)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **loss_arguments: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``[batch, kept, vocab]``, and the loss where ``labels`` are given (shifted here, −100 ignored).

        ``attention_mask`` is ``[batch, earlier + time]`` with 0 at padding, on either side; positions count the
        tokens that are not padding unless ``position_ids`` are given. A mask ``[batch, 1, time, keys]`` is taken
        as it is. ``logits_to_keep``: the last so many, or the places in a tensor. Raises ``UserError`` for a
        mask of another shape.
        """
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache(config=self.config)
        earlier = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        if position_ids is None:
            position_ids = _positions(input_ids, attention_mask, earlier)
        hidden = self.decoder.hidden(
            input_ids,
            position_ids=position_ids,
            mask=_visible(input_ids, attention_mask, earlier),
            cache=past_key_values,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.decoder.head(hidden[:, kept], self.decoder.embedding.weight)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **loss_arguments)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embedding

    def set_input_embeddings(self, value: Any) -> None:
        self.decoder.embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """None for a tied head, which has no matrix of its own."""
        return getattr(self.decoder.head, "projection", None)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.decoder.head.projection = new_embeddings

    def initialize_weights(self) -> None:
        super().initialize_weights()
        _restore_buffers(self.decoder)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As ``assay.models.initialization``: N(0, std²) for linear and embedding weights, 0 for biases."""
        if isinstance(module, nn.Linear | nn.Embedding):
            initialization.normal_(module.weight, 0.0, self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                initialization.zeros_(module.bias)


@torch.no_grad()
def _restore_buffers(decoder: Decoder) -> None:
    """Fill the buffers that are not saved: transformers loads into a network built without storage."""
    fresh = dict(skeleton(decoder.config).named_buffers())
    saved = decoder.state_dict().keys()
    for name, buffer in decoder.named_buffers():
        if name not in saved:
            buffer.copy_(fresh[name])


def _positions(ids: Tensor, mask: Tensor | None, earlier: int) -> Tensor:
    if mask is None or mask.ndim != 2:
        return torch.arange(earlier, earlier + ids.shape[1], device=ids.device)[None]
    return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, earlier:]


def _visible(ids: Tensor, mask: Tensor | None, earlier: int) -> Tensor | None:
    """Which keys each query sees, True where it does; None for causal attention over a whole sequence.

    Padding sees itself, so that no query is without a key.
    """
    if mask is not None and mask.ndim == 4:
        return mask == 0 if mask.is_floating_point() else mask.bool()
    keys = earlier + ids.shape[1]
    if mask is not None and mask.shape != (ids.shape[0], keys):
        raise UserError(
            f"attention_mask has shape {tuple(mask.shape)}; {ids.shape[0]} rows of {keys} tokens need "
            f"({ids.shape[0]}, {keys}), earlier tokens included"
        )
    key = torch.arange(keys, device=ids.device)
    query = key[earlier:, None]
    causal = (key <= query)[None, None]
    if mask is None or bool(mask.all()):
        return causal if earlier else None
    return causal & mask.bool()[:, None, None] | (key == query)
