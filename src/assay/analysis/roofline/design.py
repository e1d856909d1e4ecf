"""From a budget of latency to a network: train a grid, fit the law, search, and train the best beside its rivals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from scipy.stats.qmc import LatinHypercube

from assay.analysis.roofline.latency import Machine, Workload
from assay.analysis.roofline.law import FEWEST, LossLaw
from assay.analysis.roofline.search import (
    SIZES,
    Candidate,
    candidates,
    features,
    front,
    judge,
    read_runs,
    rivals,
    within,
)
from assay.comparison.compare import compare
from assay.config import assign, flatten
from assay.errors import UserError
from assay.files import write_text
from assay.models import ModelConfig
from assay.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Design:
    """The proposal with what it was chosen from.

    ``front`` is the Pareto set of all candidates that keep to the limits; ``kept`` are these, the best first.
    """

    run: RunConfig
    law: LossLaw
    runs: int
    kept: list[Candidate]
    front: list[Candidate]
    considered: int

    @property
    def best(self) -> Candidate:
        return self.kept[0]


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """Candidates, the proposal first, with the bits per byte that each reached (``None``: it diverged).

    ``rank`` is Spearman's correlation of predicted and measured losses, ``place`` the proposal's among the measured,
    from 1.
    """

    trained: list[tuple[Candidate, float | None]]
    rank: float
    place: int


def design(
    runs: str | Path, machine: Machine, workload: Workload, *, seconds: float, memory: float | None = None
) -> Design:
    """The network of least predicted loss that takes ``seconds`` at most, and ``memory`` bytes.

    The law of the loss is fitted to the runs below ``runs``, and candidates lie between their sizes. Raises
    ``UserError`` if the runs do not do, or no candidate keeps to the limits.
    """
    run, losses = read_runs(runs)
    models = list(losses)
    law = LossLaw.fit(features(models), list(losses.values()))
    found = judge(candidates(models), law, machine, workload)
    kept = within(found, seconds, memory)
    return Design(run, law, len(models), kept, front(kept), len(found))


def train_grid(base: Mapping[str, Any], out: str | Path, *, count: int = 16, seed: int = 0, **options: Any) -> Path:
    """Train ``count`` networks of sizes drawn up to that of the run ``base``, and return where their runs are.

    Sizes are from a Latin hypercube in logarithms: depth and width from a quarter of the configured ones, the MLP
    from 4/3 to 4 times the width, and key heads from one to all. ``options`` go to ``compare``.
    """
    if count < FEWEST:
        raise UserError(f"--count {count}: a law of the loss needs at least {FEWEST} runs")
    patches = {name_of(model): sizes(model) for model in draw(RunConfig.parse(base).model, count, seed)}
    _train(base, patches, out, seeds=[seed], **options)
    return Path(out)


def draw(largest: ModelConfig, count: int, seed: int) -> list[ModelConfig]:
    """So many networks, none twice, as ``train_grid`` says."""
    head_dim = min(largest.head_dim, largest.hidden_size // 4 or 1)
    heads = largest.hidden_size // head_dim
    found: dict[tuple[int, ...], ModelConfig] = {}
    points = LatinHypercube(4, rng=np.random.default_rng(seed)).random(4 * count)
    for depth, width, kv, inner in points:
        hidden = head_dim * max(1, round(heads * 4 ** (width - 1)))
        divisors = [k for k in range(1, hidden // head_dim + 1) if hidden // head_dim % k == 0]
        model = ModelConfig.parse(
            largest.dump()
            | {
                "depth": max(1, round(largest.depth * 4 ** (depth - 1))),
                "hidden_size": hidden,
                "num_heads": hidden // head_dim,
                "num_kv_heads": divisors[int(kv * len(divisors))],
                "head_dim": head_dim,
                "intermediate_size": 8 * max(1, round(4 / 3 * 3**inner * hidden / 8)),
            }
        )
        found.setdefault(tuple(sizes(model).values()), model)
    return list(found.values())[:count]


def sizes(model: ModelConfig) -> dict[str, int]:
    """As a patch of a run."""
    return {f"model.{name}": getattr(model, name) for name in SIZES}


def name_of(model: ModelConfig) -> str:
    """``d4-h128-kv64-i344``: depth, width, width of the keys and of the MLP."""
    return f"d{model.depth}-h{model.hidden_size}-kv{model.num_kv_heads * model.head_dim}-i{model.intermediate_size}"


def confirm(found: Design, out: str | Path, *, count: int = 4, seed: int = 1, **options: Any) -> Confirmation:
    """Train the proposal and ``count`` rivals as the runs were, but with another ``seed``.

    Rivals are candidates of about the same latency, in even steps from the best predicted loss to the worst.
    """
    chosen = rivals(found.kept, count)
    if len(chosen) < 2:
        raise UserError("only one network keeps to the limits, so that there is no rank to confirm")
    base = found.run.dump()
    del base["optimizer"]["lr"]
    patches = {name_of(one.model): sizes(one.model) for one in chosen}
    result = _train(base, patches, out, seeds=[seed], **options)
    measured = {arm.name: arm.runs[0].value for arm in result.arms}
    trained = [(one, measured[name_of(one.model)]) for one in chosen]
    losses = [float("inf") if value is None else value for _, value in trained]
    rank = float(spearmanr([one.loss for one, _ in trained], losses).statistic)
    return Confirmation(trained, rank, 1 + sum(loss < losses[0] for loss in losses))


def _train(
    base: Mapping[str, Any], patches: Mapping[str, Any], out: str | Path, *, seeds: Sequence[int], **options: Any
) -> Any:
    spec = {"arms": list(patches), "patches": patches, "seeds": list(seeds), "run": base}
    return compare(spec, out=out, **options)


def write_config(found: Design, path: Path) -> None:
    """The proposal as a configuration that ``assay train`` takes. Raises ``AssayError`` if the disk refuses."""
    table = assign(found.run.dump(), sizes(found.best.model))
    del table["optimizer"]["lr"], table["seed"]
    write_text(path, to_toml(table))


def to_toml(table: Mapping[str, Any]) -> str:
    """A nested table as dotted fields, one a line; what is ``None`` is left out."""
    return "".join(f"{field} = {_value(value)}\n" for field, value in flatten(table).items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items() if one is not None) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)
