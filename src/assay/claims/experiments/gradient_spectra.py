"""Gradient spectra of good and bad answers: documentation of Python's functions, and the same words shuffled.

SmolLM2-135M explains a function of the standard library with its own docstring, or with that docstring's words in
random order. Instructions are the same and responses are cut to one length, on which spectra depend.

Li, Li, Li, Zhou, 2025, arXiv:2504.10766.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from assay.analysis.gradient_spectra import Sample, cut_to, gradient_spectra
from assay.claims.experiments import experiments
from assay.claims.smollm2 import smollm2
from assay.training.export import open_model, tokenizer_of

MODULES = (
    "ast", "asyncio", "collections", "contextlib", "copy", "csv", "datetime", "difflib", "functools", "gzip", "heapq",
    "html", "inspect", "io", "itertools", "json", "locale", "logging", "math", "operator", "os", "pathlib", "pickle",
    "pprint", "random", "re", "shutil", "socket", "statistics", "string", "struct", "subprocess", "tempfile",
    "textwrap", "threading", "tokenize", "traceback", "types", "typing", "unittest", "uuid", "warnings", "zipfile",
)  # fmt: skip


@experiments.register("gradient-spectra")
def gradient_spectra_of_answers(seed: int, *, pairs: int = 8, length: int = 40) -> dict[str, float]:
    """``KIND.norm`` and ``KIND.rank`` of ``answers`` and ``shuffled`` ones; ``norm.auroc`` and ``rank.auroc``: how
    often an answer has the lower norm, or the higher rank, than a shuffled one; ``adjacent`` and ``same``: mean
    cosines of the answers' gradients between layers, and of k and v within one.
    """
    model, tokenizer = _smollm2()
    chance = random.Random(seed)
    documented = functions()
    chance.shuffle(documented)
    answers: list[Sample] = []
    shuffled: list[Sample] = []
    for name, text in documented:
        words = text.split()
        both = [_sample(tokenizer, name, some) for some in (words, chance.sample(words, len(words)))]
        cut = cut_to(both, length)
        if len(cut) == 2 and len(answers) < pairs:
            answers.append(cut[0])
            shuffled.append(cut[1])
    good, bad = (gradient_spectra(model, some) for some in (answers, shuffled))
    return {
        "answers.norm": float(good.scores[:, 0].mean()),
        "shuffled.norm": float(bad.scores[:, 0].mean()),
        "answers.rank": float(good.scores[:, 1].mean()),
        "shuffled.rank": float(bad.scores[:, 1].mean()),
        "norm.auroc": above(bad.scores[:, 0], good.scores[:, 0]),
        "rank.auroc": above(good.scores[:, 1], bad.scores[:, 1]),
        "adjacent": float(np.nanmean(good.adjacent)),
        "same": float(np.nanmean(good.same[:, 1])),
    }


def functions(modules: Sequence[str] = MODULES, words: int = 30) -> list[tuple[str, str]]:
    """Names and docstrings of the functions that these modules define, of at least so many words, by name."""
    found = {}
    for name in modules:
        for part, value in inspect.getmembers(importlib.import_module(name), inspect.isroutine):
            text = inspect.getdoc(value) or ""
            if not part.startswith("_") and getattr(value, "__module__", None) == name and len(text.split()) >= words:
                found[f"{name}.{part}"] = text
    return sorted(found.items())


def above(first: np.ndarray, second: np.ndarray) -> float:
    """The share of pairs in which the one of ``first`` is the larger."""
    return float((first[:, None] > second).mean())


def _sample(tokenizer: Any, name: str, words: Sequence[str]) -> Sample:
    texts = (f"Explain what {name} of Python's standard library does.\n", " ".join(words))
    prompt, response = (torch.tensor(tokenizer.encode(text), dtype=torch.long) for text in texts)
    return Sample(torch.cat([prompt, response]), len(prompt))


@functools.cache
def _smollm2() -> tuple[Any, Any]:
    return open_model(smollm2()), tokenizer_of(smollm2())
