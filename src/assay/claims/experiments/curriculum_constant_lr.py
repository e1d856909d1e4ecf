"""Text from the worst to the best, or shuffled, under a constant learning rate and one that decays.

The text is pieces of Python's library in which a share of the characters, another one in each piece, is replaced by
random ones; quality is the share that was not. Held-out pieces are left whole. All arms read the same pieces once.

Luo, Sun, Wen, Shi, Cui, Dang, Lyu, Chen, 2025, arXiv:2511.18903.
"""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from assay.claims.domains import final_domains, mixture, write_documents
from assay.claims.experiments import experiments
from assay.data.corpora.python_stdlib import PythonStdlib

SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"schedule": "constant"},
    "average": {"schedule": "constant", "average": {"name": "ema", "corrected": True}},
    "moderate": {
        "schedule": {"name": "warmup-stable-decay", "final": 1 / 3, "shape": "1-sqrt"},
        "average": {"name": "ema", "corrected": True},
    },
    "decay": {"schedule": {"name": "warmup-stable-decay", "shape": "1-sqrt"}},
}


@experiments.register("curriculum-constant-lr")
def curriculum_constant_lr(
    seed: int,
    *,
    tokens: int = 100_000,
    depth: int = 2,
    hidden_size: int = 64,
    sequence_length: int = 128,
    batch_size: int = 8,
    piece: int = 600,
    noise: float = 0.5,
    eval_bytes: int = 32768,
) -> dict[str, float]:
    """``ORDER.SCHEDULE``: bits per byte of clean held-out text, for the orders ``uniform`` and ``ascending``.

    The schedules are ``constant``; ``average``, the same with the last six checkpoints averaged; ``decay``, to 0 over
    the last fifth; and ``moderate``, to a third, averaged too. ``gain.SCHEDULE`` is what ascending order saves. The
    share of replaced characters is uniform between 0 and ``noise``.
    """
    validation = 0.3
    random = np.random.default_rng(seed)
    pieces = _pieces(piece, count=int(1.6 * tokens / piece) + int(5 * eval_bytes / piece), random=random)
    clean_count = int(5 * eval_bytes / piece)
    clean, rest = pieces[:clean_count], pieces[clean_count:]
    rates = random.uniform(0, noise, len(rest))
    noisy = [corrupted(text, rate, random) for text, rate in zip(rest, rates, strict=True)]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        trained = write_documents(Path(folder) / "noisy.jsonl", noisy)
        held_out = write_documents(Path(folder) / "clean.jsonl", clean)
        scores = Path(folder) / "scores.jsonl"
        named = [{"name": f"noisy.jsonl:{line}", "score": 1 - rate} for line, rate in enumerate(rates, start=1)]
        scores.write_text("".join(json.dumps(record) + "\n" for record in named), encoding="utf-8")
        table: dict[str, Any] = {
            "model": {"depth": depth, "hidden_size": hidden_size, "num_heads": 2},
            "data": {"corpus": mixture({trained: 1, held_out: 0}), "sequence_length": sequence_length},
            "training": {"tokens": tokens, "evaluations": 1, "compile": False},
            "seed": seed,
        }
        table["data"] |= {"batch_size": batch_size, "validation": validation, "eval_bytes": eval_bytes}
        orders = {"uniform": {"name": "uniform"}, "ascending": {"name": "ascending", "quality": f"scores:{scores}"}}
        for schedule, values in SCHEDULES.items():
            for name, order in orders.items():
                out = Path(folder) / f"{name}-{schedule}"
                domains = final_domains(out, table, {**values, "data.order": order})
                found[f"{name}.{schedule}"] = domains[held_out]
            found[f"gain.{schedule}"] = found[f"uniform.{schedule}"] - found[f"ascending.{schedule}"]
    return found


def corrupted(text: str, rate: float, random: np.random.Generator) -> str:
    """``text`` with a random character in each place, with probability ``rate``."""
    drawn = random.choice(list(string.printable[:94]), len(text))
    replaced = random.random(len(text)) < rate
    return "".join(np.where(replaced, drawn, list(text)))


def _pieces(size: int, *, count: int, random: np.random.Generator) -> list[str]:
    """``count`` pieces of the library's sources, none twice."""
    texts = (document.text for document in PythonStdlib().documents())
    cut = [text[at : at + size] for text in texts for at in range(0, len(text) - size, size)]
    return [cut[place] for place in random.permutation(len(cut))[:count]]
