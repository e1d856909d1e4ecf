"""From Python's library to its manual: what a model forgets and learns, by learning rate and share of replay.

A model is trained on the library's sources with a cosine that ends at a tenth of its peak. From its weights, with new
moments, it goes on with the manual, English prose: at the rate that it had come down to; warmed up again to the peak
and down again; and so with replay of the sources in every batch. Another is trained on both from scratch, for as many
tokens as the two stages together.

Ibrahim, Therien, Gupta, Richter, Anthony, Lesort, Belilovsky, Rish, 2024, arXiv:2403.08763.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from assay.claims.domains import final_domains, manual, mixture, write_documents
from assay.claims.experiments import experiments
from assay.training.config import RunConfig

OLD = "python-stdlib"


@experiments.register("continual-pretraining")
def continual_pretraining(
    seed: int,
    *,
    old_tokens: int = 160_000,
    new_tokens: int = 80_000,
    depth: int = 2,
    hidden_size: int = 64,
    sequence_length: int = 128,
    batch_size: int = 8,
    final: float = 0.1,
    warmup: float = 0.01,
    eval_bytes: int = 32768,
) -> dict[str, float]:
    """``ARM.old``, ``ARM.new`` and ``ARM.mean``: bits per byte of held-out sources and manual, and the mean of both.

    ``before`` is the model after the sources. The arms that go on from it are ``constant``, at ``final`` of the peak,
    and ``replay-0``, ``replay-5`` and ``replay-25``, re-warmed with that percentage of each batch from the sources.
    ``union`` is trained on both from scratch, in proportion to their tokens.
    """
    with tempfile.TemporaryDirectory() as folder:
        new = write_documents(Path(folder) / "manual.jsonl", manual())
        table: dict[str, Any] = {
            "model": {"depth": depth, "hidden_size": hidden_size, "num_heads": 2},
            "data": {"sequence_length": sequence_length, "batch_size": batch_size, "validation": 0.1},
            "training": {"evaluations": 1, "compile": False},
            "schedule": {"name": "cosine", "warmup": warmup, "final": final},
            "seed": seed,
        }
        table["data"]["eval_bytes"] = eval_bytes
        found: dict[str, float] = {}

        def run(arm: str, tokens: int, shares: tuple[float, float], **values: Any) -> None:
            table["data"]["corpus"] = mixture({OLD: shares[0], new: shares[1]})
            domains = final_domains(Path(folder) / arm, table, {"training.tokens": tokens, **values})
            found.update({f"{arm}.old": domains[OLD], f"{arm}.new": domains[new]})
            found[f"{arm}.mean"] = sum(domains.values()) / 2

        run("before", old_tokens, (1, 0))
        start = {"start.run": str(Path(folder) / "before"), "start.optimizer": False, "start.data": False}
        low = {"optimizer.lr": final * RunConfig.parse(table).model.learning_rate()}
        run("constant", new_tokens, (0, 1), **start, **low, schedule={"name": "constant", "warmup": 0.0})
        for percent in (0, 5, 25):
            run(f"replay-{percent}", new_tokens, (percent, 100 - percent), **start)
        run("union", old_tokens + new_tokens, (old_tokens, new_tokens))
    return found
