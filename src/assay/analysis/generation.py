"""Greedy text, for analyses that show what a model writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from assay.data.tokenizers import Tokenizer


@torch.no_grad()
def continuation(
    model: Any, tokenizer: Tokenizer, prompt: str, tokens: int, processors: Sequence[LogitsProcessor] = ()
) -> str:
    """The most probable next ``tokens`` of a causal language model one by one, up to the separator."""
    ids = torch.tensor([[tokenizer.separator, *tokenizer.encode(prompt)]], device=model.device)
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=tokenizer.separator,
        eos_token_id=tokenizer.separator,
        logits_processor=LogitsProcessorList(processors),
    )
    return tokenizer.decode(made[0, ids.shape[1] :].tolist())
