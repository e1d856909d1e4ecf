"""Whether the checkpoint that retrieves best comes before the one of the lowest loss.

A small language model is trained on the bytes of Python's own library, and keeps checkpoints on the way. Each of them
is tuned alike to find a function by the first line of its docstring. Some functions choose the checkpoint, others,
which no tuning saw either, report.

After Ugur et al., 2026, arXiv:2601.16018, whose models are encoders of Turkish.
"""

from __future__ import annotations

import ast
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.analysis.checkpoint_selection import Pair, choose, score
from assay.claims.experiments import experiments
from assay.data.corpora.python_stdlib import PythonStdlib
from assay.training.export import load
from assay.training.loop import train
from assay.training.run_directory import RunDirectory


@experiments.register("retrieving-checkpoints")
def retrieving_checkpoints(
    seed: int,
    *,
    tokens: int = 200_000,
    keep: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0),
    steps: int = 40,
    length: int = 64,
    functions: int = 640,
    run: dict[str, Any] | None = None,
) -> dict[str, float]:
    """``regret``: nDCG@10, on functions held out, of the checkpoint that was chosen less that of the lowest loss.

    ``lead``: of how much of the training the first comes before the second. ``correlation``: Spearman's, of the score
    with the falling loss, over the checkpoints. ``first`` and ``last`` are the held-out scores of these checkpoints.
    Of the ``functions`` a half tunes, a quarter chooses and a quarter reports.
    """
    values = {
        "model.depth": 2,
        "model.hidden_size": 64,
        "data.sequence_length": 128,
        "data.batch_size": 4,
        "data.eval_bytes": 32768,
        "training.compile": False,
        "training.evaluations": 1,
        "training.tokens": tokens,
        "training.keep": keep,
        "seed": seed,
        **(run or {}),
    }
    pairs = documented(functions, length, seed)
    half, most = len(pairs) // 2, len(pairs) * 3 // 4
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        train(out=place, values=values)
        rows = RunDirectory(place).metrics()
        losses = {row["step"]: row["bits_per_byte"] for row in rows if "bits_per_byte" in row}
        kept = sorted((place / "checkpoints").iterdir())
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        scores = [
            score(load(path, device=device), pairs[:half], pairs[half:most], pairs[most:], steps=steps)
            for path in kept
        ]
    numbers = [int(path.name) for path in kept]
    chosen = choose(numbers, [losses[number] for number in numbers], [one.choosing for one in scores])
    return {
        "regret": scores[chosen.by_score].held_out - scores[chosen.by_loss].held_out,
        "lead": chosen.lead / numbers[-1],
        "correlation": chosen.correlation,
        "first": scores[0].held_out,
        "last": scores[-1].held_out,
    }


def documented(count: int, length: int, seed: int) -> list[Pair]:
    """``count`` functions of Python's library: the first line of the docstring, and the source without docstring.

    Both as bytes, the first ``length`` of them. At most eight are of one module.
    """
    drawn = random.Random(seed)
    documents = list(PythonStdlib().documents())
    drawn.shuffle(documents)
    found: list[tuple[str, str]] = []
    while len(found) < count:
        functions = list(_functions(documents.pop().text))
        found += drawn.sample(functions, min(8, len(functions)))
    return [(_bytes(query, length), _bytes(passage, length)) for query, passage in found[:count]]


def _bytes(text: str, length: int) -> Tensor:
    return torch.tensor(list(text.encode()[:length]))


def _functions(source: str) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
            continue
        line = (ast.get_docstring(node) or "").partition("\n")[0].strip()
        if len(line) >= 20:
            node.body, node.decorator_list = node.body[1:], []
            yield line, ast.unparse(node)
