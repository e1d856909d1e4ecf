"""Diagnostics of SmolLM2-135M, on a text of the standard library that the seed draws."""

from __future__ import annotations

import random
import sysconfig
from pathlib import Path

from assay.claims.experiments import experiments
from assay.claims.smollm2 import smollm2
from assay.data.reading import decode, files_below, read
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows
from assay.training.diagnose import carry_out
from assay.training.export import open_model, tokenizer_of

LONG = 40_000
"""Bytes: files of the library that have as many hold a few windows."""


@experiments.register("diagnosed-smollm2")
def diagnosed_smollm2(
    seed: int, *, diagnostics: list[str], tokens: int = 1024, length: int = 256, model: str | None = None
) -> dict[str, float]:
    """``DIAGNOSTIC.NUMBER`` for every number that they give; ``model`` is SmolLM2-135M unless it is given."""
    path = model or str(smollm2())
    tokenizer = tokenizer_of(path)
    ids = tokenizer.encode(a_text(seed)).tolist()
    windows = Windows.of({"code": ids}, separator=tokenizer.separator, length=length, tokens=tokens)
    results, _ = carry_out(Subject(open_model(path)), windows, diagnostics)
    return {f"{name}.{key}": x for name, result in results.items() for key, x in result.scalars.items()}


def a_text(seed: int) -> str:
    """A long file of the running interpreter's standard library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = files_below(library, without=frozenset({"site-packages", "test", "tests", "__pycache__"}))
    long = [file for file in files if file.suffix == ".py" and file.stat().st_size >= LONG]
    random.Random(seed).shuffle(long)
    return next(text for file in long if (text := decode(read(file))) is not None)
