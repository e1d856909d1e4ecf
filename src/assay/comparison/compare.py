"""Comparing: plan the runs, carry out those that are missing, and draw the conclusions."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assay.catalog.techniques import Arm
from assay.comparison import workers
from assay.comparison.directory import ComparisonDirectory
from assay.comparison.progress import ComparisonProgress
from assay.comparison.result import ArmResult, Candidate, Comparison, RunResult, Tuning
from assay.comparison.runners import Job, Runner, runners
from assay.comparison.spec import TUNING_SEED, ComparisonSpec
from assay.comparison.statistics import compare_arms
from assay.config import assign, flatten, read_toml
from assay.data.windows import TokenData, prepare
from assay.errors import UserError
from assay.training import environment
from assay.training.budget import Budget
from assay.training.compilation import repays
from assay.training.config import RunConfig


def compare(
    spec: ComparisonSpec | str | Path | Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    arms: Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    tokens: float | str | None = None,
    flops: float | str | None = None,
    seconds: float | str | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    values: Mapping[str, Any] | None = None,
    runner: str = "local",
    jobs: int | None = None,
    progress: bool = False,
    command: str | None = None,
) -> Comparison:
    """Train every arm with every seed under one budget, and compare each arm with the first, paired by seed.

    ``spec`` is a ``ComparisonSpec``, a TOML file or a table; the other arguments replace or extend what it says:
    ``values`` are dotted fields of the run configuration for all arms. The result is also in
    ``out/comparison.json``. Runs that ``out`` holds already are not repeated, so that the same call goes on where
    an earlier one stopped, and a call with more arms or seeds adds what is missing.

    ``jobs`` is the number of worker processes (chosen from the machine and the model if None), ``runner`` where
    they run (``local`` or ``ray``).

    Raises ``UserError`` for anything that cannot be compared, before the first run starts; ``Interrupted`` on
    Ctrl-C, with everything saved.
    """
    started = time.monotonic()
    given = {
        "arms": list(arms) if arms is not None else None,
        "seeds": seeds if seeds is None or isinstance(seeds, int) else list(seeds),
        "tokens": tokens,
        "flops": flops,
        "seconds": seconds,
        "tune": {field: list(tried) for field, tried in tune.items()} if tune is not None else None,
    }
    spec = _spec(spec, given, values or {})
    runners[runner]  # raises for an unknown name, before anything else is done
    plan = _Plan(spec, ComparisonDirectory(out))
    pending = plan.runs_left()
    processes, threads = workers.choose(plan.planned[0].config, max(1, pending), jobs)
    with runners.build(runner, workers=processes, threads=threads) as running:
        plan.directory.open(spec)
        execution = _Execution(plan, running, processes, threads, progress)
        tuned = execution.tune() if spec.tune else {}
        final = plan.final(tuned)
        execution.carry_out("comparing", final)
    result = _conclude(plan, final, tuned, time.monotonic() - started, command)
    result.save(plan.directory.result_path)
    return result


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of one arm."""

    arm: Arm
    config: RunConfig
    id: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class _Plan:
    """Which runs a comparison consists of. All errors of the input are raised here, before anything is written."""

    def __init__(self, spec: ComparisonSpec, directory: ComparisonDirectory) -> None:
        self.spec, self.directory = spec, directory
        self.arms = [spec.arm(name) for name in spec.arms]
        self._data: dict[str, TokenData] = {}
        for arm in self.arms:
            for settings in spec.candidates():
                self._check(arm, spec.config(arm, settings=settings))
        self.planned = self.final({})

    def _check(self, arm: Arm, config: RunConfig) -> None:
        data = self.data(config)
        data.windows(config.data.sequence_length)
        Budget.of(config.with_vocabulary(data.vocab_size))

    def data(self, config: RunConfig) -> TokenData:
        key = config.data.model_dump_json()
        if key not in self._data:
            self._data[key] = prepare(config.data)
        return self._data[key]

    def run(self, arm: Arm, seed: int, settings: Mapping[str, Any] | None = None) -> PlannedRun:
        config = self.spec.config(arm, seed, settings)
        data = self.data(config)
        config = config.with_vocabulary(data.vocab_size)
        return PlannedRun(arm, config, config.run_id(data.fingerprint), settings or {})

    def tuning(self) -> list[PlannedRun]:
        """Every candidate of every arm, on seeds that the comparison does not use."""
        seeds = range(TUNING_SEED, TUNING_SEED + self.spec.tune_seeds)
        return [
            self.run(arm, seed, settings)
            for arm in self.arms
            for settings in self.spec.candidates()
            for seed in seeds
        ]

    def final(self, tuned: Mapping[str, Tuning]) -> list[PlannedRun]:
        """Every arm with every seed, with the settings that tuning chose."""
        return [
            self.run(arm, seed, tuned[arm.name].chosen if arm.name in tuned else None)
            for arm in self.arms
            for seed in self.spec.seeds
        ]

    def runs_left(self) -> int:
        """How many runs are still to do, as far as is known before tuning."""
        runs = self.planned + (self.tuning() if self.spec.tune else [])
        return sum(not self.is_over(run) for run in runs)

    def is_over(self, run: PlannedRun) -> bool:
        return (self.directory.run_path(run.id) / "summary.json").exists()

    def result(self, run: PlannedRun) -> RunResult:
        return self.directory.result(run.arm.name, run.config.seed, run.id)


class _Execution:
    """Carrying out planned runs on a runner."""

    def __init__(self, plan: _Plan, runner: Runner, processes: int, threads: int, progress: bool) -> None:
        self.plan, self.runner, self.processes, self.threads = plan, runner, processes, threads
        self.progress = progress

    def tune(self) -> dict[str, Tuning]:
        """Each arm's best candidate by its mean final metric; one that diverged anywhere is out."""
        runs = self.plan.tuning()
        self.carry_out("tuning", runs)
        return {arm.name: self._best(arm, runs) for arm in self.plan.arms}

    def _best(self, arm: Arm, runs: Sequence[PlannedRun]) -> Tuning:
        candidates = []
        for settings in self.plan.spec.candidates():
            of_candidate = [run for run in runs if run.arm == arm and run.settings == settings]
            values = [self.plan.result(run).value for run in of_candidate]
            finite = [value for value in values if value is not None]
            score = math.fsum(finite) / len(finite) if len(finite) == len(values) else None
            candidates.append(Candidate(values=settings, score=score))
        best = min(candidates, key=lambda candidate: math.inf if candidate.score is None else candidate.score)
        seeds = sorted({run.config.seed for run in runs})
        return Tuning(chosen=best.values, candidates=candidates, seeds=seeds)

    def carry_out(self, title: str, runs: Sequence[PlannedRun]) -> None:
        """Do those runs that are not over yet."""
        left = {run.id: run for run in runs if not self.plan.is_over(run)}
        by_arm: dict[str, list[PlannedRun]] = {}
        for run in left.values():
            by_arm.setdefault(run.arm.name, []).append(run)
        per_worker = [-(-len(arm_runs) // max(1, self.processes // len(by_arm))) for arm_runs in by_arm.values()]
        device = "cuda" if "gpu" in environment.hardware() else "cpu"
        compiled = any(
            repays(arm_runs[0].config, device=device, threads=self.threads, sharing=sharing)
            for arm_runs, sharing in zip(by_arm.values(), per_worker, strict=True)
        )
        jobs = [
            [self._job(run, compiled, sharing) for run in arm_runs]
            for arm_runs, sharing in zip(by_arm.values(), per_worker, strict=True)
        ]
        batches = workers.batches(jobs, self.processes, together=compiled)
        flat = [job for batch in batches for job in batch]
        with ComparisonProgress(title, flat, shown=self.progress) as bar:
            for job in self.runner.run(batches):
                bar.done(job)

    def _job(self, run: PlannedRun, compiled: bool, sharing: int) -> Job:
        config = run.config.dump()
        config["training"]["compile"] = compiled
        return Job(config, str(self.plan.directory.run_path(run.id)), sharing)


def _spec(
    spec: ComparisonSpec | str | Path | Mapping[str, Any] | None,
    given: Mapping[str, Any],
    values: Mapping[str, Any],
) -> ComparisonSpec:
    """The specification, with what the call itself gives over it."""
    if isinstance(spec, ComparisonSpec):
        table: dict[str, Any] = spec.dump()
    elif isinstance(spec, str | Path):
        table = read_toml(spec)
    else:
        table = dict(spec or {})
    given = {name: value for name, value in given.items() if value is not None}
    if any(name in given for name in ("tokens", "flops", "seconds")):
        for name in ("tokens", "flops", "seconds"):
            table.pop(name, None)
    table = {**table, **given}
    if values:
        table["run"] = assign(table.get("run", {}), values)
    if "arms" not in table:
        raise UserError("no arms to compare; name them, for example --arms baseline,seednorm")
    return ComparisonSpec.parse(table)


def _conclude(
    plan: _Plan, runs: Sequence[PlannedRun], tuned: Mapping[str, Tuning], seconds: float, command: str | None
) -> Comparison:
    baseline = plan.arms[0]
    reference = next(run.config for run in runs if run.arm == baseline)
    arms = []
    for arm in plan.arms:
        own = [run for run in runs if run.arm == arm]
        arms.append(
            ArmResult(
                name=arm.name,
                techniques=list(arm.techniques),
                differences=_differences(reference, own[0].config),
                tuned=tuned.get(arm.name),
                runs=[plan.result(run) for run in own],
            )
        )
    data = plan.data(reference)
    return Comparison(
        title=plan.spec.heading,
        budget=_budget(reference),
        seeds=plan.spec.seeds,
        arms=compare_arms(arms),
        data={
            "corpus": reference.dump()["data"]["corpus"],
            "tokenizer": reference.dump()["data"]["tokenizer"],
            "train_tokens": len(data.train),
            "eval_bytes": data.eval_bytes,
            "sequence_length": reference.data.sequence_length,
            "batch_size": reference.data.batch_size,
        },
        hardware=environment.hardware(),
        versions=environment.versions(),
        created=datetime.now(UTC),
        seconds=seconds,
        command=command,
    )


def _budget(config: RunConfig) -> dict[str, Any]:
    training = config.training
    return {
        name: value
        for name, value in (("tokens", training.tokens), ("flops", training.flops), ("seconds", training.seconds))
        if value is not None
    }


def _differences(baseline: RunConfig, other: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations differ, seed aside."""
    one, two = flatten(baseline.dump()), flatten(other.dump())
    changed = sorted(field for field in one.keys() | two.keys() if one.get(field) != two.get(field))
    return {field: (one.get(field), two.get(field)) for field in changed if field != "seed"}
