from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from assay.analysis.roofline.design import confirm, design, draw, name_of, to_toml, train_grid, write_config
from assay.analysis.roofline.latency import Machine, Shape, Workload, latency, memory
from assay.analysis.roofline.search import Candidate, candidates, front, pareto, read_runs, rivals, within
from assay.config import assign
from assay.errors import UserError
from assay.models import ModelConfig
from assay.training.config import read_run_config
from assay.training.loop import train

MACHINE = Machine(1e11, ((1e6, 2e10),), layer=1e-4)
WORK = Workload(prompt=16, new=2)
TINY = {
    "model.depth": 3,
    "model.hidden_size": 32,
    "model.head_dim": 8,
    "data.sequence_length": 16,
    "data.batch_size": 2,
    "data.eval_bytes": 512,
    "training.tokens": 64,
    "training.evaluations": 1,
    "training.compile": False,
}


def dominated(one: np.ndarray, others: np.ndarray) -> bool:
    return bool(((others <= one).all(1) & (others < one).any(1)).any())


def test_the_front_is_what_nothing_dominates() -> None:
    points = np.random.default_rng(0).integers(0, 12, (200, 2)).astype(float)
    kept = pareto(points)
    assert all(not dominated(points[index], points) for index in kept)
    assert {tuple(point) for point in points if not dominated(point, points)} == {tuple(points[i]) for i in kept}
    worse = np.concatenate([points, points[kept[:1]] + 1])
    assert list(pareto(worse)) == list(kept)


def model(depth: int, hidden: int, kv: int = 1, inner: int = 64) -> ModelConfig:
    return ModelConfig.parse(
        {"depth": depth, "hidden_size": hidden, "head_dim": 8, "num_heads": hidden // 8, "num_kv_heads": kv}
        | {"intermediate_size": inner, "vocab_size": 257, "max_length": 16}
    )


def candidate(loss: float, depth: int) -> Candidate:
    one = model(depth, 16)
    shape = Shape.of(one)
    return Candidate(one, loss, latency(shape, MACHINE, WORK), memory(shape, WORK))


def test_a_tighter_limit_cannot_lower_the_best_loss() -> None:
    found = [candidate(loss, depth) for loss, depth in [(3.0, 1), (2.9, 3), (3.1, 2), (2.5, 5)]]
    limits = [candidate(0, depth).latency.total for depth in (5, 4, 3, 2, 1)]
    best = [within(found, limit)[0].loss for limit in limits]
    assert best == [2.5, 2.9, 2.9, 3.0, 3.0]
    assert [one.loss for one in front(found)] == [3.0, 2.9, 2.5]
    smallest = candidate(0, 1)
    assert [one.model.depth for one in within(found, 1.0, smallest.memory)] == [1]
    with pytest.raises(UserError, match=r"the fastest takes .* ms, the smallest .* MB; train smaller ones"):
        within(found, smallest.latency.total / 2)


def test_candidates_stay_between_the_sizes_of_the_runs() -> None:
    found = candidates([model(1, 16, 1, 24), model(3, 48, 3, 144)])
    assert {m.depth for m in found} == {1, 2, 3}
    assert {m.hidden_size for m in found} == {16, 24, 32, 40, 48}
    assert {m.num_kv_heads for m in found if m.hidden_size == 48} == {1, 2, 3}
    assert all(m.num_heads * 8 == m.hidden_size and 1.2 <= m.intermediate_size / m.hidden_size <= 3.3 for m in found)
    assert len(set(found)) == len(found)


def test_rivals_are_about_as_slow_and_begin_with_the_best() -> None:
    found = sorted((candidate(loss / 10, 10 + loss % 3) for loss in range(30)), key=lambda one: one.loss)
    chosen = rivals(found, 4)
    assert chosen[0] is found[0]
    assert chosen[-1] is found[-1]
    assert len(chosen) == 5


def test_a_grid_has_no_network_twice_and_none_above_the_largest() -> None:
    largest = ModelConfig.parse({"depth": 8, "hidden_size": 128, "head_dim": 16})
    found = draw(largest, 16, seed=0)
    assert len({name_of(m) for m in found}) == 16
    assert all(2 <= m.depth <= 8 and 32 <= m.hidden_size <= 128 for m in found)
    assert found == draw(largest, 16, seed=0) != draw(largest, 16, seed=1)


def test_configurations_survive_toml(tmp_path: Path) -> None:
    table = {"a": {"b": "x", "c": None, "d": [1, 2.5]}, "e": True, "f": [{"name": "y"}]}
    assert tomllib.loads(to_toml(table)) == {"a": {"b": "x", "d": [1, 2.5]}, "e": True, "f": [{"name": "y"}]}


def test_from_a_grid_to_a_confirmed_configuration(tmp_path: Path) -> None:
    """Every step on networks of a few steps of training; the law's quality is no matter here."""
    folder = train_grid(assign({}, TINY), tmp_path / "grid", count=6, jobs=1)
    run, losses = read_runs(folder)
    assert len(losses) == 6
    found = design(folder, MACHINE, WORK, seconds=1.0)
    assert found.kept[0].loss == min(one.loss for one in found.kept)
    assert found.front[-1] == found.best
    shape = Shape.of(found.best.model)
    assert found.best.latency == latency(shape, MACHINE, WORK)
    write_config(found, tmp_path / "design.toml")
    again = read_run_config(tmp_path / "design.toml")
    assert again.model == found.best.model
    assert again.data == run.data
    assert again.optimizer.options["lr"] == pytest.approx(found.best.model.learning_rate())
    checked = confirm(found, tmp_path / "confirm", count=2, jobs=1)
    assert checked.trained[0][0] == found.best
    measured = [value for _, value in checked.trained]
    assert None not in measured
    assert checked.place == 1 + sorted(measured).index(measured[0])
    train(again, out=tmp_path / "run")
    train(again, out=tmp_path / "more" / "a", values={"loss.z_loss": 1e-4})
    train(again, out=tmp_path / "more" / "b", values={"seed": 1})
    with pytest.raises(UserError, match=r"has loss.*runs to learn from differ in sizes"):
        read_runs(tmp_path / "more")
    with pytest.raises(UserError, match="no finished run below"):
        read_runs(tmp_path / "nowhere")


def test_a_grid_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--count 5: a law of the loss needs at least 6 runs"):
        train_grid(assign({}, TINY), tmp_path / "grid", count=5)
    assert not (tmp_path / "grid").exists()
