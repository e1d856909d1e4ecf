"""Heads: from the last hidden state to logits, constructed with ``(hidden_size, vocab_size)``.

A head is called with the hidden state and the embedding's matrix, which a tied head uses as its own.
"""

from __future__ import annotations

from torch import nn

from assay.registry import Registry

heads: Registry[nn.Module] = Registry("head", __name__)
