"""``bpe``: byte-pair encoding of bytes, trained on the training text.

Sennrich, Haddow, Birch, 2016, arXiv:1508.07909; on bytes: Radford et al., 2019.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Integer

from assay.data.split import Split
from assay.data.tokenizers import Tokenizer, tokenizers
from assay.errors import UserError
from assay.files import disk_errors, write_text
from assay.home import cache

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

FORMAT = 1
END_OF_TEXT = "<|endoftext|>"


@tokenizers.register("bpe")
class BPE(Tokenizer):
    """256 bytes, then merges, then the separator.

    Words are those of GPT-2's pattern. It is trained once per text and size, and kept in the cache.

    Args:
        split: the text to train on.
        vocab_size: ids in all, at least 257; a short text may have fewer pairs to merge than that.
    """

    argument = "vocab_size"

    def __init__(self, split: Split, *, vocab_size: int = 4096) -> None:
        if vocab_size < 257:
            raise UserError(f"tokenizer 'bpe': vocab_size={vocab_size} is below 257, the bytes and a separator")
        self.name = f"bpe:{vocab_size}"
        self._split = split
        self._wanted = vocab_size

    @property
    def identity(self) -> str:
        return f"bpe {_hash(self._serialized)}"

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    @property
    def separator(self) -> int:
        return self.vocab_size - 1

    def encode_batch(self, texts: Sequence[str]) -> list[Integer[np.ndarray, " length"]]:
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int64) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode([int(id) for id in ids], skip_special_tokens=True)

    def save(self, folder: str | Path) -> None:
        save(self._backend, folder)

    @functools.cached_property
    def _backend(self) -> Backend:
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(self._serialized)
        backend.encode_special_tokens = True
        return backend

    @functools.cached_property
    def _serialized(self) -> str:
        path = cache() / "tokenizers" / f"bpe-{FORMAT}-{self._wanted}-{self._split.key}"
        serialized = _open(path)
        if serialized is None:
            serialized = _train(self._split.training(), self._wanted)
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, f"{_hash(serialized)}\n{serialized}")
        return serialized


def _hash(serialized: str) -> str:
    return hashlib.blake2b(serialized.encode(), digest_size=16).hexdigest()


def _open(path: Path) -> str | None:
    try:
        digest, _, serialized = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return serialized if digest == _hash(serialized) else None


def _train(texts: Iterator[str], vocab_size: int) -> str:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    add_separator(backend)
    return backend.to_str()


def add_separator(backend: Backend) -> None:
    """Append the separator to the vocabulary."""
    from tokenizers import AddedToken

    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])


def save(backend: Backend, folder: str | Path) -> None:
    """Write ``backend`` so that ``transformers.AutoTokenizer`` opens it, the separator as its end of text."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )
    with disk_errors(Path(folder)):
        tokenizer.save_pretrained(folder)
