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
    """The module of a checkpoint that holds a module's weights."""

    module: str

    def take(self, tensor: Tensor) -> Tensor:
        return tensor


@dataclasses.dataclass(frozen=True)
class Conv1D(Source):
    """One of ``parts`` linear maps side by side, stored (in, out) as GPT-2 stores them."""

    part: int = 0
    parts: int = 1

    def take(self, tensor: Tensor) -> Tensor:
        return tensor.tensor_split(self.parts, dim=-1)[self.part].t().contiguous()


@dataclasses.dataclass(frozen=True)
class Family:
    """How one kind of checkpoint is read.

    ``modules`` is None where the decoder's own names stand after ``prefix``. Tensors whose whole name matches
    ``ignored`` are left alone: buffers that old checkpoints carry, and the copy of a tied head. ``requires``
    lists the values that an attribute may have.
    """

    config: Callable[[Any], dict[str, Any]]
    modules: Mapping[str, Source] | None
    prefix: str
    ignored: str
    requires: Mapping[str, Collection[Any]] = dataclasses.field(default_factory=dict)

    def translate(self, config: PreTrainedConfig) -> dict[str, Any]:
        """A ``ModelConfig`` table. Raises ``UserError`` for what a decoder does not have."""
        for attribute, possible in self.requires.items():
            value = getattr(config, attribute, None)
            if value not in possible:
                raise _unsupported(config, attribute, value, " or ".join(repr(choice) for choice in possible))
        return self.config(config)

    def source(self, name: str) -> tuple[str, Source]:
        """For the decoder's parameter ``name``: the tensor's name in a checkpoint, and how to take it."""
        if self.modules is None:
            return self.prefix + name, Source(self.prefix)
        module, _, leaf = name.rpartition(".")
        layer = re.search(r"(?<=\.)\d+(?=\.)", module)
        number = layer[0] if layer else ""
        source = self.modules[module.replace(f".{number}.", ".#.", 1) if layer else module]
        return f"{source.module.replace('#', number)}.{leaf}", source


def _unsupported(config: PreTrainedConfig, attribute: str, value: Any, only: str) -> UserError:
    return UserError(f"{config.model_type}: {attribute}={value!r} is not supported, only {only}")


def _llama(config: Any, **attention: bool) -> dict[str, Any]:
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise _unsupported(config, "sliding_window", window, "attention to all earlier tokens")
    rope = dict(config.rope_parameters)
    position = {"name": "rotary", "theta": rope.pop("rope_theta")}
    if (share := rope.pop("partial_rotary_factor", 1.0)) != 1.0:
        raise _unsupported(config, "partial_rotary_factor", share, "1.0")
    if rope["rope_type"] != "default":
        position["scaling"] = rope
    return {
        "depth": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
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
        "mlp": {
            "name": "gelu",
            "bias": True,
            "approximate": "none" if config.activation_function == "gelu" else "tanh",
        },
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
    "layers.#.mixer.branch.query": Conv1D("transformer.h.#.attn.c_attn", part=0, parts=3),
    "layers.#.mixer.branch.key": Conv1D("transformer.h.#.attn.c_attn", part=1, parts=3),
    "layers.#.mixer.branch.value": Conv1D("transformer.h.#.attn.c_attn", part=2, parts=3),
    "layers.#.mixer.branch.output": Conv1D("transformer.h.#.attn.c_proj"),
    "layers.#.mlp.input_norm": Source("transformer.h.#.ln_2"),
    "layers.#.mlp.branch.up": Conv1D("transformer.h.#.mlp.c_fc"),
    "layers.#.mlp.branch.down": Conv1D("transformer.h.#.mlp.c_proj"),
    "final_norm": Source("transformer.ln_f"),
    "head.projection": Source("lm_head"),
}


def _llama_family(modules: Mapping[str, Source], attention: Callable[[Any], dict[str, bool]]) -> Family:
    return Family(
        lambda config: _llama(config, **attention(config)),
        modules,
        prefix="model.",
        ignored=r".*\.rotary_emb\.inv_freq|lm_head\.weight",
        requires={"hidden_act": ("silu", "swish")},
    )


def _biases(config: Any) -> dict[str, bool]:
    return {"qkv_bias": config.attention_bias, "output_bias": config.attention_bias}


FAMILIES: Mapping[str, Family] = {
    "assay": Family(lambda config: config.model_config().dump(), None, prefix="decoder.", ignored=""),
    "llama": _llama_family(_LLAMA_MODULES, _biases),
    "mistral": _llama_family(_LLAMA_MODULES, lambda config: {}),
    "qwen2": _llama_family(_LLAMA_MODULES, lambda config: {"qkv_bias": True}),
    "qwen3": _llama_family(_LLAMA_MODULES | _QK_NORMS, lambda config: {**_biases(config), "qk_norm": True}),
    "gpt2": Family(
        _gpt2,
        _GPT2_MODULES,
        prefix="transformer.",
        ignored=r".*attn\.(masked_)?bias|lm_head\.weight",
        requires={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    ),
}
"""By ``model_type`` of the configuration."""
