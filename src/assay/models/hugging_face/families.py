"""Families of released models: how a configuration and its weights' names translate into a decoder's.

A family is one entry of ``FAMILIES``: a function from its transformers configuration to a ``ModelConfig`` table,
and for each module of the decoder the module of the checkpoint that holds its weights (``#`` is the layer).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from assay.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """A module of a checkpoint.

    With ``parts`` it holds several linear maps one after the other, stored (in, out) as GPT-2 stores them, of which
    ``part`` is meant.
    """

    module: str
    part: int = 0
    parts: int = 0

    def take(self, tensor: Tensor) -> Tensor:
        if not self.parts:
            return tensor
        stacked = tensor.T if tensor.ndim == 2 else tensor
        return stacked.tensor_split(self.parts)[self.part].contiguous()


@dataclasses.dataclass(frozen=True)
class Family:
    """``prefix`` is left out by checkpoints saved without a head; ``ignored`` are buffers of old checkpoints."""

    config: Callable[[Any], dict[str, Any]]
    modules: Mapping[str, Source]
    requires: Mapping[str, Collection[Any]] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    ignored: str = r"(?!)"

    def model_config(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Raises ``UserError`` if the configuration asks for what a decoder does not have."""
        for attribute, possible in self.requires.items():
            value = getattr(config, attribute, None)
            if value not in possible:
                choices = " or ".join(repr(choice) for choice in possible)
                raise UserError(f"{config.model_type}: {attribute}={value!r} is not supported, only {choices} is")
        return self.config(config)

    def source(self, name: str) -> tuple[str, Source]:
        """Where a checkpoint has the decoder's parameter ``name``: the tensor's name, and how to read it."""
        module, _, leaf = name.rpartition(".")
        layer = re.search(r"\.(\d+)\.", module)
        number = layer[1] if layer else "#"
        source = self.modules[module.replace(f".{number}.", ".#.", 1)]
        return f"{source.module.replace('#', number)}.{leaf}", source


class Own(Family):
    """Folders that assay saved: the names are the decoder's own."""

    def source(self, name: str) -> tuple[str, Source]:
        return f"decoder.{name}", Source("")


def _llama(config: Any, **attention: bool) -> dict[str, Any]:
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise UserError(f"{config.model_type}: sliding_window={window} is not supported, only full attention is")
    rope = dict(config.rope_parameters)
    position = {"name": "rotary", "theta": rope.pop("rope_theta")}
    if (share := rope.pop("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"{config.model_type}: partial_rotary_factor={share} is not supported, only 1.0 is")
    if rope["rope_type"] != "default":
        position["scaling"] = rope
    return {
        "depth": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None),
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_length": config.max_position_embeddings,
        "init_std": config.initializer_range,
        "norm": {"name": "rms-norm", "eps": config.rms_norm_eps},
        "mixer": {"name": "softmax", **{option: True for option, chosen in attention.items() if chosen}},
        "mlp": {"name": "swiglu", **({"bias": True} if getattr(config, "mlp_bias", False) else {})},
        "position": position,
        "head": "tied" if config.tie_word_embeddings else "untied",
    }


def _gpt2(config: Any) -> dict[str, Any]:
    return {
        "depth": config.n_layer,
        "hidden_size": config.n_embd,
        "num_heads": config.n_head,
        "intermediate_size": config.n_inner or 4 * config.n_embd,
        "vocab_size": config.vocab_size,
        "max_length": config.n_positions,
        "init_std": config.initializer_range,
        "norm": {"name": "layer-norm", "eps": config.layer_norm_epsilon},
        "mixer": {"name": "softmax", "qkv_bias": True, "output_bias": True},
        "mlp": {"name": "gelu", "bias": True, "approximate": "none" if config.activation_function == "gelu" else "tanh"},
        "position": "learned",
        "head": "tied" if config.tie_word_embeddings else "untied",
    }


_LLAMA_MODULES = {
    "embedding": Source("model.embed_tokens"),
    "layers.#.mixer.input_norm": Source("model.layers.#.input_layernorm"),
    "layers.#.mixer.branch.query": Source("model.layers.#.self_attn.q_proj"),
    "layers.#.mixer.branch.key": Source("model.layers.#.self_attn.k_proj"),
    "layers.#.mixer.branch.value": Source("model.layers.#.self_attn.v_proj"),
    "layers.#.mixer.branch.output": Source("model.layers.#.self_attn.o_proj"),
    "layers.#.mlp.input_norm": Source("model.layers.#.post_attention_layernorm"),
    "layers.#.mlp.branch.gate": Source("model.layers.#.mlp.gate_proj"),
    "layers.#.mlp.branch.up": Source("model.layers.#.mlp.up_proj"),
    "layers.#.mlp.branch.down": Source("model.layers.#.mlp.down_proj"),
    "final_norm": Source("model.norm"),
    "head.projection": Source("lm_head"),
}
_QK_NORMS = {
    "layers.#.mixer.branch.query_norm": Source("model.layers.#.self_attn.q_norm"),
    "layers.#.mixer.branch.key_norm": Source("model.layers.#.self_attn.k_norm"),
}
_GPT2_MODULES = {
    "embedding": Source("transformer.wte"),
    "position.table": Source("transformer.wpe"),
    "layers.#.mixer.input_norm": Source("transformer.h.#.ln_1"),
    "layers.#.mixer.branch.query": Source("transformer.h.#.attn.c_attn", part=0, parts=3),
    "layers.#.mixer.branch.key": Source("transformer.h.#.attn.c_attn", part=1, parts=3),
    "layers.#.mixer.branch.value": Source("transformer.h.#.attn.c_attn", part=2, parts=3),
    "layers.#.mixer.branch.output": Source("transformer.h.#.attn.c_proj", parts=1),
    "layers.#.mlp.input_norm": Source("transformer.h.#.ln_2"),
    "layers.#.mlp.branch.up": Source("transformer.h.#.mlp.c_fc", parts=1),
    "layers.#.mlp.branch.down": Source("transformer.h.#.mlp.c_proj", parts=1),
    "final_norm": Source("transformer.ln_f"),
    "head.projection": Source("lm_head"),
}
_SILU = {"hidden_act": ("silu", "swish")}
_OLD_ROTARY = r".*\.rotary_emb\.inv_freq"

FAMILIES: Mapping[str, Family] = {
    "assay": Own(lambda config: config.model_config().dump(), {}),
    "llama": Family(
        lambda config: _llama(config, qkv_bias=config.attention_bias, output_bias=config.attention_bias),
        _LLAMA_MODULES,
        requires=_SILU,
        prefix="model.",
        ignored=_OLD_ROTARY,
    ),
    "mistral": Family(_llama, _LLAMA_MODULES, requires=_SILU, prefix="model.", ignored=_OLD_ROTARY),
    "qwen2": Family(
        lambda config: _llama(config, qkv_bias=True),
        _LLAMA_MODULES,
        requires=_SILU,
        prefix="model.",
        ignored=_OLD_ROTARY,
    ),
    "qwen3": Family(
        lambda config: _llama(
            config, qkv_bias=config.attention_bias, output_bias=config.attention_bias, qk_norm=True
        ),
        _LLAMA_MODULES | _QK_NORMS,
        requires=_SILU,
        prefix="model.",
    ),
    "gpt2": Family(
        _gpt2,
        _GPT2_MODULES,
        requires={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        prefix="transformer.",
        ignored=r".*attn\.(masked_)?bias",
    ),
}
"""By ``model_type`` of the configuration."""
