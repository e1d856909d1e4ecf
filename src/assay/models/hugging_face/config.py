"""A decoder's configuration, as transformers keeps configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from assay.models.config import ModelConfig


class AssayConfig(PreTrainedConfig):
    """``model`` is a dumped ``ModelConfig``; the attributes that transformers reads follow from it.

    ``vocab_size`` may differ from the one in ``model`` after embeddings were resized, and then it counts.
    Raises ``UserError`` if ``model`` is not a model configuration.
    """

    model_type = "assay"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(
        self,
        model: Mapping[str, Any] | None = None,
        *,
        vocab_size: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        use_cache: bool = True,
        **attributes: Any,
    ) -> None:
        config = ModelConfig.parse(model or {})
        self.model = config.dump()
        self.vocab_size = config.vocab_size if vocab_size is None else vocab_size
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.use_cache = use_cache
        attributes |= {
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "max_position_embeddings": config.max_length,
            "initializer_range": config.init_std,
            "tie_word_embeddings": config.head.name == "tied",
        }
        super().__init__(**attributes)

    def model_config(self) -> ModelConfig:
        return ModelConfig.parse({**self.model, "vocab_size": self.vocab_size})
