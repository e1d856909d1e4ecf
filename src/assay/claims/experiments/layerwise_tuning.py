"""A small decoder that knows Python's sources is tuned on English, some blocks at a time or all of them.

Pre-training on Python's library, then from its weights one run an arm on the topics of Python's built-in help, all
arms on the same batches at the same rates.

Pan et al., 2024, arXiv:2403.17919 (LISA); Li et al., 2024, arXiv:2405.18380 (OwLore).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from assay.claims.experiments import experiments
from assay.training.loop import train

Arms = Mapping[str, Mapping[str, Any]]


@experiments.register("lisa-tuning")
def lisa_tuning(
    seed: int,
    *,
    layers: int = 2,
    every: int = 20,
    depth: int = 8,
    hidden_size: int = 64,
    sequence_length: int = 128,
    batch_size: int = 4,
    steps: int = 240,
    tuning_steps: int = 120,
) -> dict[str, float]:
    """``ARM``: bits per byte of held-out English at the end.

    The arms are ``start`` (not tuned), ``full`` (AdamW on all parameters), ``lisa`` and ``frozen``, which is LISA
    without blocks: what is in no block is tuned.
    """
    lisa = {"name": "lisa", "layers": layers, "every": every}
    arms = {"full": {}, "lisa": {"selection": lisa}, "frozen": {"selection": {**lisa, "layers": 0}}}
    run = settings(depth, hidden_size, sequence_length, batch_size)
    return tuned(seed, run, arms, steps=steps, tuning_steps=tuning_steps)[0]


@experiments.register("owlore-tuning")
def owlore_tuning(
    seed: int,
    *,
    layers: int = 2,
    every: int = 20,
    threshold: float = 5.0,
    rank: int = 16,
    depth: int = 8,
    hidden_size: int = 64,
    sequence_length: int = 128,
    batch_size: int = 4,
    steps: int = 240,
    tuning_steps: int = 120,
) -> dict[str, float]:
    """``ARM``: bits per byte of held-out English at the end, and ``spread``: max D − min D over the blocks.

    The arms draw blocks by their outliers as pre-training left them (``outlier``), alike (``uniform``) and against
    their outliers (``reverse``), all with GaLore of the same rank; ``start`` is not tuned.
    """
    arms = {
        name: {
            "selection": {
                "name": "owlore",
                "layers": layers,
                "every": every,
                "threshold": threshold,
                "distribution": name,
            },
            "optimizer": {"name": "galore", "rank": rank, "scale": 1.0},
        }
        for name in ("outlier", "uniform", "reverse")
    }
    run = settings(depth, hidden_size, sequence_length, batch_size)
    found, scores = tuned(seed, run, arms, steps=steps, tuning_steps=tuning_steps)
    return found | {"spread": max(scores) - min(scores)}


def settings(depth: int, hidden_size: int, sequence_length: int, batch_size: int) -> dict[str, Any]:
    return {
        "model": {"depth": depth, "hidden_size": hidden_size, "num_heads": max(1, hidden_size // 32)},
        "data": {"sequence_length": sequence_length, "batch_size": batch_size, "eval_bytes": 128 * sequence_length},
        "training": {"evaluations": 1, "compile": False},
    }


def tuned(
    seed: int, run: dict[str, Any], arms: Arms, *, steps: int, tuning_steps: int
) -> tuple[dict[str, float], list[float]]:
    """Bits per byte of English by arm and at the start, and the first arm's scores of the blocks, if it has some."""
    tokens = run["data"]["sequence_length"] * run["data"]["batch_size"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_english(place / "english")
        english = {"data.corpus": f"text:{place / 'english'}", "start.run": str(place / "first"), "seed": seed}
        train(run, out=place / "first", values={"seed": seed, "training.tokens": steps * tokens})
        still = {"optimizer.lr": 0.0, "optimizer.weight_decay": 0.0, "training.tokens": tokens}
        found = {"start": bits(train(run, out=place / "start", values={**english, **still}))}
        tuning = {**english, "start.optimizer": False, "training.tokens": tuning_steps * tokens}
        for name, values in arms.items():
            found[name] = bits(train({**run, **values}, out=place / name, values=tuning))
        parts = place / next(iter(arms)) / "checkpoint" / "parts.safetensors"
        return found, load_file(parts)["selection|scores"].tolist() if parts.exists() else []


def bits(summary: Any) -> float:
    return float("nan") if summary.bits_per_byte is None else summary.bits_per_byte


def write_english(folder: Path) -> None:
    """The topics of Python's built-in help, one file each."""
    from pydoc_data.topics import topics

    folder.mkdir()
    for name, text in topics.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
