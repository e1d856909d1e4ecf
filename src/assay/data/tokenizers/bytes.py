"""``bytes``: the ids are the bytes of UTF-8, and 256 is the separator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from assay.data.tokenizers import Tokenizer, tokenizers


@tokenizers.register("bytes")
class Bytes(Tokenizer):
    """id = byte, 257 ids in all."""

    name = "bytes"
    identity = "bytes"
    vocab_size = 257
    separator = 256

    def encode_batch(self, texts: Sequence[str]) -> list[Integer[np.ndarray, " length"]]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(id for id in ids if id < 256).decode("utf-8", "replace")

    def save(self, folder: str | Path) -> None:
        """Write a byte-level BPE without merges, whose ids are the same."""
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers

        from assay.data.tokenizers.bpe import add_separator, save

        backend = Backend(models.BPE(vocab={character: byte for byte, character in _alphabet()}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        add_separator(backend)
        save(backend, folder)


def _alphabet() -> list[tuple[int, str]]:
    """Byte-level BPE writes a byte as a printable character: itself, or the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [(byte, chr(byte)) for byte in printable] + [(byte, chr(0x100 + rank)) for rank, byte in enumerate(others)]
