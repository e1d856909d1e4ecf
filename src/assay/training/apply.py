"""Applying a transform by name: a model is read, changed and written."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch

from assay.catalog.techniques import technique as catalogued
from assay.config import assign
from assay.data import DataConfig
from assay.data.tokenizers import Tokenizer
from assay.data.windows import TokenData, prepare
from assay.errors import UserError
from assay.models import Decoder
from assay.models.hugging_face.saving import save
from assay.slots import Component
from assay.training.export import is_run, load, run_of, tokenizer_of
from assay.training.progress import ProgressBar
from assay.transforms import Transform, transforms
from assay.transforms.tuning import Tuning, held_out

EVAL_BYTES = 16384
"""Of held-out text, on which a model is measured before and after."""


@dataclasses.dataclass(frozen=True)
class Applied:
    """What came of a transform.

    Attributes:
        model: the changed model, in evaluation mode.
        before: bits per byte of the given model on text that was held out; None if there was no text.
        after: those of the changed model on the same text.
    """

    model: Decoder
    before: float | None = None
    after: float | None = None


def apply(
    technique: str,
    model: Decoder | str | Path,
    *,
    out: str | Path | None = None,
    text: str | Path | None = None,
    corpus: Any = None,
    tokenizer: Tokenizer | str | None = None,
    progress: bool = False,
    **options: Any,
) -> Applied:
    """Change a trained model by the transform that ``technique`` names, and write it to ``out`` if that is given.

    ``model`` is a decoder, which stays as it is, or anything that ``load`` reads. ``text`` is a file or a folder, and
    ``corpus`` any corpus instead; where neither is given, a run has its own. A twentieth of the text is held out to
    measure the model before and after. ``tokenizer`` (``"bytes"``, ``"hf:FOLDER"``) is for a model that has none
    with it. ``options`` are the transform's own. ``out`` becomes a Hugging Face folder, with the tokenizer.

    Raises ``UserError`` for an unknown technique or option, a model or a text that cannot be read or does not suit,
    and an ``out`` that is not empty. ``out`` is written as a whole at the end, or not at all.
    """
    transform = Component.parse(transforms, {"name": _transform(technique), **assign({}, options)}).build()
    if out is not None:
        _check_empty(Path(out))
    if text is not None and corpus is not None:
        raise UserError("give a text or a corpus, not both")
    source = None if isinstance(model, Decoder) else model
    corpus = f"text:{text}" if text is not None else corpus
    if corpus is None and source is not None and is_run(source):
        corpus = run_of(source).config().data.corpus
    if corpus is None and transform.reads_text:
        raise UserError(f"{technique!r} reads text: give a file or a folder with --text, or a --corpus")
    decoder = copy.deepcopy(model) if isinstance(model, Decoder) else load(model)
    data = None if corpus is None else _read(corpus, tokenizer or _own_tokenizer(source), decoder)
    if torch.accelerator.is_available():
        decoder = decoder.to(torch.accelerator.current_accelerator())
    applied = _carry_out(transform, decoder, data, technique, progress)
    if out is not None:
        save(applied.model, out, None if data is None else data.tokenizer)
    return applied


def _transform(technique: str) -> str:
    """The transform's name. Raises ``UserError`` for what is none, with the nearest techniques."""
    if technique in transforms:
        return technique
    paper = catalogued(technique)
    if paper.transform is None:
        raise UserError(
            f"{technique!r} changes how a model is trained, not a trained model: `assay techniques show {technique}`"
        )
    return paper.transform


def _check_empty(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{str(out)!r} is a file; give a folder to write the model in")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{str(out)!r} is not empty; give another folder")


def _own_tokenizer(source: str | Path | None) -> Tokenizer:
    if source is None:
        raise UserError("a decoder has no tokenizer of its own; give one, such as tokenizer='bytes' or 'hf:FOLDER'")
    try:
        return tokenizer_of(source)
    except UserError as error:
        raise UserError(f"{error}; give the model's tokenizer: bytes, or hf:FOLDER") from None


def _read(corpus: Any, tokenizer: Tokenizer | str, model: Decoder) -> TokenData:
    """The text under the model's tokenizer; whether it is long enough, the transform will say."""
    fields = {"corpus": corpus, "sequence_length": 1, "eval_bytes": EVAL_BYTES}
    if isinstance(tokenizer, str):
        data = prepare(DataConfig.parse({**fields, "tokenizer": tokenizer}))
    else:
        data = prepare(DataConfig.parse(fields), tokenizer)
    largest = max(int(data.train.max()), int(data.validation.max()))
    if model.config.vocab_size is not None and largest >= model.config.vocab_size:
        raise UserError(
            f"the tokenizer {data.tokenizer.name!r} gives ids up to {largest}, and the model has only "
            f"{model.config.vocab_size}: it is not this model's"
        )
    return data


def _carry_out(transform: Transform, model: Decoder, data: TokenData | None, title: str, progress: bool) -> Applied:
    with ProgressBar(title, shown=progress) as bar:
        if data is None:
            return Applied(transform(model, None, bar.show))
        length = Tuning().length(model)
        before = held_out(model, data, sequence_length=length).bits_per_byte
        changed = transform(model, data, bar.show)
        return Applied(changed, before, held_out(changed, data, sequence_length=length).bits_per_byte)
