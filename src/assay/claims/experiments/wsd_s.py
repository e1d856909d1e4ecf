"""Several budgets from one run: WSD-S, WSD by branching, and cyclic cosine, beside a cosine run for each budget.

Small language models on the bytes of Python's own library. All schedules have one peak rate, the warm-up of the first
budget and the floor of a tenth; WSD decays inversely over the same tokens as WSD-S. At every budget all but the
single cosine runs have spent as many tokens in all: WSD's branches are paid for by a shorter trunk.

Wen, Li, Wang, Hall, Liang, Ma, 2024, arXiv:2410.05192.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assay.claims.experiments import experiments
from assay.training.loop import train
from assay.training.run_directory import RunDirectory

WARMUP, FLOOR = 0.05, 0.1


@experiments.register("wsd-s-budgets")
def wsd_s_budgets(
    seed: int,
    *,
    tokens: int = 102_400,
    budgets: tuple[float, ...] = (0.25, 0.5),
    decay: float = 0.1,
    run: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Bits per byte of the whole validation text: ``ARM.1``, ``ARM.2``, ... at the budgets, with ``tokens`` the last.

    ``ARM`` alone is the mean from the second budget on. The arms are ``wsd-s``, ``wsd``, ``cyclic-cosine`` and
    ``cosine``. ``fall.stable`` and ``fall.decay`` are by how much the loss of WSD's trunk falls in 100,000 tokens of
    its last stretch, and of the decay after that. ``run`` are dotted fields of the configuration.
    """
    values = {
        "model.depth": 2,
        "model.hidden_size": 64,
        "data.sequence_length": 128,
        "data.batch_size": 2,
        "data.eval_bytes": 32768,
        "training.compile": False,
        "training.evaluations": 1,
        "seed": seed,
        **(run or {}),
    }
    ends = [round(share * tokens) for share in (*budgets, 1.0)]
    warmup = WARMUP * ends[0]
    with tempfile.TemporaryDirectory() as folder:
        runs = _Runs(Path(folder), values)

        def cosine(end: int) -> float:
            schedule = {"name": "cosine", "warmup": warmup / end, "final": FLOOR}
            return runs.losses(f"cosine-{end}", end, schedule)[0]

        cycles = {"name": "wsd-s", "budgets": budgets, "warmup": warmup / tokens, "final": FLOOR}
        cyclic = {**cycles, "decay": 1.0, "shape": "cosine"}
        found = {
            "wsd-s": runs.losses("wsd-s", tokens, {**cycles, "decay": decay}, budgets),
            "cyclic-cosine": runs.losses("cyclic-cosine", tokens, cyclic, budgets),
            "cosine": [cosine(end) for end in ends],
        }
        decays = [round(decay * (end - start)) for start, end in itertools.pairwise((0, *ends))]
        parts = [end - spent for end, spent in zip(ends, itertools.accumulate(decays), strict=True)]
        shares = [part / parts[-1] for part in parts[:-1]]
        constant = {"name": "constant", "warmup": warmup / parts[-1]}
        trunk = runs.losses("trunk", parts[-1], constant, shares)
        falling = {"name": "warmup-stable-decay", "warmup": 0.0, "decay": 1.0, "final": FLOOR, "shape": "inverse"}
        found["wsd"] = [
            runs.losses(f"branch-{part}", length, falling, start=runs.nearest("trunk", part / parts[-1]))[0]
            for part, length in zip(parts, decays, strict=True)
        ]
    quantities = {f"{arm}.{i}": value for arm, values_ in found.items() for i, value in enumerate(values_, 1)}
    quantities |= {arm: sum(values_[1:]) / len(values_[1:]) for arm, values_ in found.items()}
    stretch = (parts[-1] - parts[-2]) / 100_000
    return quantities | {
        "fall.stable": (trunk[-2] - trunk[-1]) / stretch,
        "fall.decay": (trunk[-1] - found["wsd"][-1]) / (decays[-1] / 100_000),
    }


class _Runs:
    """Runs below one folder that share most of their configuration."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder, self.values = folder, values

    def losses(
        self,
        name: str,
        tokens: int,
        schedule: dict[str, Any],
        keep: Sequence[float] = (),
        *,
        start: Path | None = None,
    ) -> list[float]:
        """Train, and return the bits per byte at the kept shares and at the end; NaN from where it diverged."""
        values = {
            **self.values,
            "training.tokens": tokens,
            "training.keep": [*keep, 1.0],
            "schedule": schedule,
            **({} if start is None else {"start.run": str(start)}),
        }
        train(out=self.folder / name, values=values)
        found = {
            row["step"]: row["bits_per_byte"]
            for row in RunDirectory(self.folder / name).metrics()
            if "bits_per_byte" in row
        }
        losses = [found[int(path.name)] for path in self.kept(name)]
        return losses + [float("nan")] * (len(keep) + 1 - len(losses))

    def kept(self, name: str) -> list[Path]:
        return sorted((self.folder / name / "checkpoints").glob("*"))

    def nearest(self, name: str, share: float) -> Path:
        """The checkpoint that was kept at ``share`` of the run."""
        kept = self.kept(name)
        return min(kept, key=lambda path: abs(int(path.name) - share * int(kept[-1].name)))
