"""Shapes of networks that assay and transformers both train: Llama, one head for 64 features, bytes for tokens."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from assay.models import Decoder

VOCAB_SIZE = 257


@dataclasses.dataclass(frozen=True)
class Shape:
    name: str
    hidden_size: int
    depth: int
    intermediate_size: int
    batch_size: int
    sequence_length: int

    @property
    def num_heads(self) -> int:
        return max(1, self.hidden_size // 64)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length

    def model(self) -> dict[str, Any]:
        """The table ``model`` of a run."""
        return {
            "depth": self.depth,
            "hidden_size": self.hidden_size,
            "num_heads": self.num_heads,
            "intermediate_size": self.intermediate_size,
        }

    def data(self) -> dict[str, Any]:
        """The table ``data`` of a run, corpus aside."""
        return {"batch_size": self.batch_size, "sequence_length": self.sequence_length}

    def decoder(self) -> Decoder:
        from assay.models import Decoder, ModelConfig
        from assay.models.initialization import initialize

        decoder = Decoder(ModelConfig(**self.model(), vocab_size=VOCAB_SIZE, max_length=self.sequence_length))
        initialize(decoder, 0, 0.02)
        return decoder

    def llama(self, seed: int = 0) -> LlamaForCausalLM:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.depth,
            num_attention_heads=self.num_heads,
            max_position_embeddings=self.sequence_length,
            rms_norm_eps=1e-6,
            initializer_range=0.02,
            tie_word_embeddings=False,
            use_cache=False,
            attn_implementation="sdpa",
        )
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def copy_of(llama: LlamaForCausalLM) -> Decoder:
    """A decoder with the weights of ``llama``, by the way that a user would take."""
    from transformers.utils import logging

    from assay.models.hugging_face.loading import load

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        llama.save_pretrained(folder)
        return load(folder)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("128x4", 128, 4, 344, 16, 128),
        Shape("256x6", 256, 6, 688, 16, 256),
        Shape("512x8", 512, 8, 1376, 8, 256),
        Shape("32x2", 32, 2, 88, 4, 32),
    )
}
SMALLEST, QUICK = "128x4", "32x2"
