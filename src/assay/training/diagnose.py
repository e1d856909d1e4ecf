"""Diagnosing: a model is opened, run on a text, and measured."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from assay.data import DataConfig
from assay.data.reading import decode, read
from assay.data.tokenizers import Tokenizer
from assay.data.windows import prepare
from assay.diagnostics import Diagnostic, Result, diagnostics
from assay.diagnostics.diagnosis import Diagnosis
from assay.diagnostics.observing import observe
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows
from assay.errors import UserError
from assay.models import Decoder
from assay.quantities import quantity
from assay.training.export import is_run, open_model, run_of, tokenizer_of
from assay.training.progress import ProgressBar

LENGTH = 512
"""Tokens in a window, unless the model takes fewer."""
CHARACTERS = 400_000
"""Of a text that are read, unless more tokens are asked for."""


def diagnose(
    model: PreTrainedModel | Decoder | str | Path,
    *,
    text: str | Path | Sequence[str | Path] | None = None,
    corpus: Any = None,
    tokenizer: Tokenizer | str | None = None,
    tokens: int | str = 4096,
    length: int | None = None,
    only: Sequence[str] | None = None,
    gradients: bool = False,
    progress: bool = False,
) -> Diagnosis:
    """Measure what a causal language model does on a text, and what is wrong with it.

    ``model`` is a model, or anything that ``open_model`` reads: a run, a Hugging Face folder of any architecture, a
    GGUF file, a name on the Hub. ``text`` are files, each a domain of its own, or ``corpus`` a corpus; where neither
    is given, a run has its own, and other models read this interpreter's standard library, as code and as prose.
    ``tokens`` in all go through the model, in windows of ``length`` (512, or the most that the model takes). ``only``
    are names of diagnostics; otherwise all are done but those that need ``gradients``.

    Raises ``UserError`` for what cannot be read, an unknown diagnostic, one named in ``only`` that this model gives
    nothing to measure, a text shorter than a window and a window longer than the model's positions.
    """
    names = _chosen(only, gradients)
    asked = int(quantity(tokens))
    if asked < 1:
        raise UserError(f"tokens={tokens}: at least one token has to be read")
    if text is not None and corpus is not None:
        raise UserError("give a text or a corpus, not both")
    source = model if isinstance(model, str | Path) else None
    reader = _tokenizer(tokenizer, source)
    subject = Subject(open_model(model, device=_device()) if isinstance(model, str | Path) else model)
    texts = _texts(text, corpus, source, reader)
    windows = Windows.of(
        {name: _ids(content, reader, asked) for name, content in texts.items()},
        separator=reader.separator,
        length=_length(length, subject),
        tokens=asked,
    )
    largest = int(windows.ids.max())
    if largest >= subject.vocab_size:
        raise UserError(
            f"the tokenizer {reader.name!r} gives ids up to {largest}, and the model has only {subject.vocab_size}: "
            "it is not this model's"
        )
    about = {
        "architecture": type(subject.model).__name__,
        "layers": len(subject.layers),
        "hidden_size": subject.hidden_size,
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "tokens": windows.ids.numel(),
        "window": windows.ids.shape[1],
        "domains": windows.names,
    }
    title = type(subject.model).__name__ if source is None else str(source)
    with ProgressBar("diagnose", shown=progress) as bar:
        results, skipped = carry_out(subject, windows, names, bar)
    if only is not None and (missing := next((name for name in names if name in skipped), None)):
        raise UserError(f"{title}: diagnostic {missing!r}: {skipped[missing]}")
    return Diagnosis(title, about, results, skipped)


def carry_out(
    subject: Subject, windows: Windows, names: Sequence[str], bar: ProgressBar | None = None
) -> tuple[dict[str, Result], dict[str, str]]:
    """The results by name, and why others measured nothing. Weights that are no numbers end all else."""
    listeners = {name: diagnostics.build(name, subject=subject) for name in names}
    results: dict[str, Result] = {}
    skipped: dict[str, str] = {}
    broken = next((n for n, p in subject.model.named_parameters() if not bool(p.isfinite().all())), None)
    if broken is not None:
        listeners = {"weights": diagnostics.build("weights", subject=subject)}
        skipped = {name: f"{broken!r} has weights that are not finite" for name in names if name != "weights"}
    observe(subject, windows, list(listeners.values()), lambda share: bar.show(share / 2, "reading") if bar else None)
    for number_, (name, diagnostic) in enumerate(listeners.items(), 1):
        if bar is not None:
            bar.show(0.5 + number_ / len(listeners) / 2, name)
        try:
            diagnostic.work(windows)
            found = diagnostic.result()
        except UserError as error:
            skipped[name] = str(error)
            continue
        if found is None:
            skipped[name] = _nothing(diagnostic)
        else:
            results[name] = found
    return results, skipped


def _device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _nothing(diagnostic: Diagnostic) -> str:
    for event, what in (("on_attention", "softmax attention"), ("on_neurons", "MLP that ends in one linear map")):
        if getattr(type(diagnostic), event) is not getattr(Diagnostic, event):
            return f"the model has no {what} that can be listened to"
    return "the model gives nothing to measure"


def _chosen(only: Sequence[str] | None, gradients: bool) -> list[str]:
    if only is not None:
        if not only:
            raise UserError(f"no diagnostic is named; known: {', '.join(diagnostics)}")
        for name in only:
            diagnostics[name]
        return list(dict.fromkeys(only))
    costs = {name: getattr(diagnostics[name], "cost", "pass") for name in diagnostics}
    return [name for name, cost in costs.items() if gradients or cost != "gradients"]


def _length(length: int | None, subject: Subject) -> int:
    most = subject.max_length
    if length is None:
        return LENGTH if most is None else min(LENGTH, most)
    if length < 2:
        raise UserError(f"length={length}: a window has at least 2 tokens")
    if most is not None and length > most:
        raise UserError(f"length={length}: the model takes at most {most} tokens at once")
    return length


def _tokenizer(tokenizer: Tokenizer | str | None, source: str | Path | None) -> Tokenizer:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if isinstance(tokenizer, str):
        component: Tokenizer = DataConfig.parse({"tokenizer": tokenizer}).tokenizer.build(split=None)
        return component
    if source is None:
        raise UserError("a model has no tokenizer of its own; give one, such as tokenizer='bytes' or 'hf:FOLDER'")
    try:
        return tokenizer_of(source)
    except UserError as error:
        raise UserError(f"{error}; give the model's tokenizer: bytes, or hf:FOLDER") from None


def _texts(text: Any, corpus: Any, source: str | Path | None, tokenizer: Tokenizer) -> Mapping[str, Any]:
    """Text, or token ids, by domain."""
    if text is not None:
        files = [text] if isinstance(text, str | Path) else list(text)
        names = [Path(file).name for file in files]
        labels = names if len(set(names)) == len(names) else [str(file) for file in files]
        return {label: _read(Path(file)) for label, file in zip(labels, files, strict=True)}
    if corpus is None and source is not None and is_run(source):
        data = prepare(run_of(source).config().data)
        return {data.corpus: data.validation}
    if corpus is not None:
        data = prepare(DataConfig.parse({"corpus": corpus, "sequence_length": 1}), tokenizer)
        return {data.corpus: data.validation}
    return standard_texts()


def standard_texts() -> dict[str, str]:
    """Two domains that every Python has: code of its standard library, and the prose of its help."""
    from pydoc_data import topics

    return {
        "code": _module_source("argparse") + _module_source("typing"),
        "prose": "\n\n".join(topics.topics.values()),
    }


def _read(file: Path) -> str:
    content = decode(read(file))
    if content is None:
        raise UserError(f"{str(file)!r} is not UTF-8 text")
    return content


def _module_source(name: str) -> str:
    file = importlib.import_module(name).__file__
    assert file is not None
    return Path(file).read_text(encoding="utf-8")


def _ids(content: Any, tokenizer: Tokenizer, tokens: int) -> list[int]:
    if isinstance(content, str):
        return tokenizer.encode(content[: max(CHARACTERS, 8 * tokens)]).tolist()
    return [int(id) for id in content if id != tokenizer.separator]
