"""Runs to learn from, candidates of the sizes between theirs, and the best of them under a limit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from assay.analysis.roofline.latency import Latency, Machine, Shape, Workload, latency, memory
from assay.analysis.roofline.law import LossLaw
from assay.config import flatten
from assay.errors import UserError
from assay.models import ModelConfig
from assay.training.config import EXECUTION, RunConfig
from assay.training.run_directory import RunDirectory

SIZES = ("depth", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size")
"""Fields of ``model`` that a design decides."""

_FREE = {f"model.{name}" for name in SIZES} | {"optimizer.lr", "seed"} | {f"training.{name}" for name in EXECUTION}
EXPANSIONS = 5
"""Widths of the MLP that are tried for each width of the network."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network with its predicted loss (bits per byte), latency (seconds) and memory (bytes)."""

    model: ModelConfig
    loss: float
    latency: Latency
    memory: float


def features(models: Sequence[ModelConfig]) -> dict[str, list[float]]:
    """What the law reads: l, d, d_m and r."""
    return {
        "depth": [float(m.depth) for m in models],
        "hidden_size": [float(m.hidden_size) for m in models],
        "kv_size": [float(m.num_kv_heads * m.head_dim) for m in models],
        "expansion": [m.intermediate_size / m.hidden_size for m in models],
    }


def read_runs(folder: str | Path) -> tuple[RunConfig, dict[ModelConfig, float]]:
    """One of the runs below ``folder``, and the mean bits per byte of each network; diverged runs are left out.

    Raises ``UserError`` if there is none, or if they differ in more than sizes, learning rate and seed.
    """
    found: dict[ModelConfig, list[float]] = {}
    first: RunConfig | None = None
    for path in sorted(Path(folder).rglob("summary.json")):
        directory = RunDirectory(path.parent)
        summary = directory.summary()
        if summary is None or summary.bits_per_byte is None:
            continue
        config = directory.config()
        first = first or config
        _check_alike(first, config, path.parent)
        found.setdefault(config.model, []).append(summary.bits_per_byte)
    if first is None:
        raise UserError(f"no finished run below {str(folder)!r}")
    return first, {model: sum(values) / len(values) for model, values in found.items()}


def _check_alike(one: RunConfig, other: RunConfig, path: Path) -> None:
    a, b = ({k: v for k, v in flatten(c.dump()).items() if k not in _FREE} for c in (one, other))
    for field in sorted(a.keys() | b.keys()):
        if a.get(field) != b.get(field):
            raise UserError(
                f"{str(path)!r} has {field}={b.get(field)!r} and others {a.get(field)!r}; "
                "runs to learn from differ in sizes, learning rate and seed alone"
            )


def candidates(models: Sequence[ModelConfig]) -> list[ModelConfig]:
    """All networks with sizes between the least and the greatest of ``models``, and heads of their dimensions."""
    seen = features(models)
    low, high = ({name: pick(values) for name, values in seen.items()} for pick in (min, max))
    table = models[0].dump()
    found = []
    for head_dim in sorted({m.head_dim for m in models}):
        widths = range(head_dim, int(high["hidden_size"]) + 1, head_dim)
        for width in (one for one in widths if one >= low["hidden_size"]):
            heads = width // head_dim
            kv = [
                k for k in range(1, heads + 1) if heads % k == 0 and low["kv_size"] <= k * head_dim <= high["kv_size"]
            ]
            inner = {8 * round(r * width / 8) for r in np.geomspace(low["expansion"], high["expansion"], EXPANSIONS)}
            depths = range(int(low["depth"]), int(high["depth"]) + 1)
            for depth, k, intermediate in itertools.product(depths, kv, sorted(inner - {0})):
                sizes = (depth, width, heads, k, head_dim, intermediate)
                found.append(ModelConfig.parse(table | dict(zip(SIZES, sizes, strict=True))))
    return found


def judge(models: Sequence[ModelConfig], law: LossLaw, machine: Machine, workload: Workload) -> list[Candidate]:
    """Each network with what is predicted of it."""
    shapes = [Shape.of(model) for model in models]
    return [
        Candidate(model, float(loss), latency(shape, machine, workload), memory(shape, workload))
        for model, shape, loss in zip(models, shapes, law.predict(features(models)), strict=True)
    ]


def within(found: Sequence[Candidate], seconds: float, bytes_: float | None = None) -> list[Candidate]:
    """Those that keep to the limits, the least loss first.

    Raises ``UserError`` with the fastest if none does.
    """
    if seconds <= 0 or (bytes_ is not None and bytes_ <= 0):
        raise UserError("limits of latency and memory are above 0")
    limit = bytes_ if bytes_ is not None else float("inf")
    kept = [one for one in found if one.latency.total <= seconds and one.memory <= limit]
    if not kept:
        fastest = min(one.latency.total for one in found)
        smallest = min(one.memory for one in found)
        raise UserError(
            f"no network between the sizes of the runs keeps to the limits: the fastest takes "
            f"{fastest * 1e3:.3g} ms, the smallest {smallest / 1e6:.3g} MB; train smaller ones"
        )
    return sorted(kept, key=lambda one: (one.loss, one.latency.total))


def pareto(costs: Float[np.ndarray, "points 2"]) -> Int[np.ndarray, " front"]:
    """Indices of the points that no other one beats, by the first cost: none is as low in both and lower in one."""
    order = np.lexsort((costs[:, 1], costs[:, 0]))
    front: list[int] = []
    for index in order:
        if not front or costs[index, 1] < costs[front[-1], 1]:
            front.append(int(index))
    return np.asarray(front, int)


def front(found: Sequence[Candidate]) -> list[Candidate]:
    """The Pareto set in latency and loss, the fastest first."""
    costs = np.asarray([(one.latency.total, one.loss) for one in found])
    return [found[index] for index in pareto(costs)]


def rivals(found: Sequence[Candidate], count: int) -> list[Candidate]:
    """The best of candidates that are in the order of their loss, and others up to the worst in even steps.

    They come from those that use at least four fifths of the slowest one's latency, if these are enough.
    """
    slowest = max(one.latency.total for one in found)
    slow = [one for one in found if one is found[0] or one.latency.total >= 0.8 * slowest]
    pool = slow if len(slow) > count else list(found)
    return [pool[round(i)] for i in np.linspace(0, len(pool) - 1, min(count + 1, len(pool)))]
