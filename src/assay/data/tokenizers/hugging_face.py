"""``hf:FOLDER``: any Hugging Face tokenizer of a local folder, or the one in a GGUF file."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from assay.data.reading import read
from assay.data.tokenizers import Tokenizer, tokenizers
from assay.errors import UserError
from assay.files import disk_errors

FILES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})


@tokenizers.register("hf")
class HuggingFaceTokenizer(Tokenizer):
    """What ``transformers.AutoTokenizer`` opens, of a folder or a GGUF file; its end-of-text token is the separator.

    No code in the folder is run and nothing is downloaded. Special tokens are not recognised inside texts.
    """

    argument = "folder"

    def __init__(self, *, folder: str) -> None:
        self.name = f"hf:{folder}"
        self._place = Path(folder).expanduser()
        if not self._place.is_dir() and not (self._place.suffix == ".gguf" and self._place.is_file()):
            raise UserError(f"tokenizer {self.name!r}: there is no such folder; a tokenizer is read from a local one")

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the files in the folder that a tokenizer can be made of, or of the tokenizer in a GGUF file."""
        digest = hashlib.blake2b(digest_size=16)
        if self._place.is_file():
            digest.update(f"{self.separator} {self._backend.backend_tokenizer.to_str()}".encode())
            return f"hf {digest.hexdigest()}"
        for path in sorted(self._place.iterdir()):
            if path.suffix in FILES and path.is_file():
                content = hashlib.blake2b(read(path), digest_size=16).hexdigest()
                digest.update(f"{content} {path.name}\n".encode("utf-8", "surrogateescape"))
        return f"hf {digest.hexdigest()}"

    @functools.cached_property
    def vocab_size(self) -> int:
        return max(self._backend.get_vocab().values()) + 1

    @property
    def separator(self) -> int:
        if self._backend.eos_token_id is None:
            raise UserError(f"tokenizer {self.name!r} has no end-of-text token (eos_token)")
        return int(self._backend.eos_token_id)

    def encode_batch(self, texts: Sequence[str]) -> list[Integer[np.ndarray, " length"]]:
        encoded = self._backend(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [np.asarray(ids, np.int64) for ids in encoded["input_ids"]]

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode(
            [int(id) for id in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def save(self, folder: str | Path) -> None:
        with disk_errors(Path(folder)):
            self._backend.save_pretrained(folder)

    @functools.cached_property
    def _backend(self) -> Any:
        from transformers import AutoTokenizer

        where, options = self._place, dict[str, str]()
        if where.is_file():
            where, options = where.parent, {"gguf_file": where.name}
        try:
            return AutoTokenizer.from_pretrained(where, **options, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever a broken file makes the libraries raise
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"tokenizer {self.name!r} cannot be opened: {reason[0]}") from None
