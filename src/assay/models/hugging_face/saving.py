"""Saving: a decoder becomes a folder that ``AutoModelForCausalLM`` opens."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.generation.configuration_utils import GenerationConfig

from assay.errors import UserError
from assay.files import disk_errors
from assay.models.decoder import Decoder
from assay.models.hugging_face.checkpoint import SINGLE
from assay.models.hugging_face.config import AssayConfig

ARCHITECTURE = "AssayForCausalLM"
SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".model", ".jinja"})
"""Of the files of a saved model and its tokenizer; a folder with others is not overwritten."""


class Tokenizer(Protocol):
    @property
    def separator(self) -> int:
        """The id that stands before each document."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the files that ``AutoTokenizer`` opens."""
        ...


def save(decoder: Decoder, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write ``config.json``, ``generation_config.json``, ``model.safetensors`` and the tokenizer's files.

    The folder is written beside its place and renamed when it is whole; a model saved there before is replaced.
    Generation begins and ends with the tokenizer's separator. Raises ``UserError`` if ``folder`` holds anything
    else than a saved model, ``AssayError`` if it cannot be written, and leaves what was there as it was.
    """
    folder = Path(folder).expanduser().resolve()
    _check_free(folder)
    separator = None if tokenizer is None else tokenizer.separator
    config = AssayConfig(
        decoder.config.dump(),
        bos_token_id=separator,
        eos_token_id=separator,
        pad_token_id=separator,
        architectures=[ARCHITECTURE],
        dtype=str(next(decoder.parameters()).dtype).removeprefix("torch."),
    )
    written = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    with disk_errors(folder):
        try:
            written.mkdir(parents=True)
            config.save_pretrained(written)
            GenerationConfig.from_model_config(config).save_pretrained(written)
            state = {f"decoder.{name}": tensor.contiguous() for name, tensor in decoder.state_dict().items()}
            save_file(state, written / SINGLE, metadata={"format": "pt"})
            if tokenizer is not None:
                tokenizer.save(written)
            _put_in_place(written, folder)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else 0, str(error)) from None
        finally:
            shutil.rmtree(written, ignore_errors=True)


def _check_free(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file; give a folder to save the model in")
    files = sorted(folder.iterdir())
    if not files:
        return
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        model_type = None
    foreign = [file.name for file in files if file.is_dir() or file.suffix not in SUFFIXES]
    if model_type != AssayConfig.model_type or foreign:
        found = foreign[0] if foreign else files[0].name
        raise UserError(f"{str(folder)!r} holds {found!r}, not only a model saved by assay; give another folder")


def _put_in_place(written: Path, folder: Path) -> None:
    if not folder.exists():
        written.rename(folder)
        return
    old = written.with_suffix(".old")
    folder.rename(old)
    try:
        written.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
