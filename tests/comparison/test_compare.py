"""Comparisons against their own definition: the runs that they stand for, trained one by one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from assay.comparison.compare import compare
from assay.comparison.result import Comparison
from assay.comparison.runners import Job, carry_out
from assay.comparison.spec import TUNING_SEED, ComparisonSpec, parse_tune
from assay.comparison.workers import batches, choose
from assay.errors import AssayError, Interrupted, UserError
from assay.training.config import RunConfig
from assay.training.loop import train


def values(result: Comparison) -> dict[tuple[str, int], float | None]:
    return {(run.arm, run.seed): run.value for arm in result.arms for run in arm.runs}


def summaries(out: Path) -> dict[Path, int]:
    """When each run of a comparison ended."""
    return {path: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}


def test_each_value_is_that_of_the_run_alone(tiny: dict[str, Any], tmp_path: Path) -> None:
    result = compare(**tiny, out=tmp_path / "out")
    assert [arm.name for arm in result.arms] == ["baseline", "seednorm"]
    assert result.seeds == [0, 1]
    for (arm, seed), value in values(result).items():
        alone = dict(tiny["values"]) | {"seed": seed, "training.tokens": tiny["tokens"], "training.compile": False}
        if arm == "seednorm":
            alone["model.norm"] = "seednorm"
        assert train(out=tmp_path / f"{arm}{seed}", values=alone).bits_per_byte == value
    ours = {seed: value for (arm, seed), value in values(result).items() if arm == "seednorm"}
    theirs = {seed: value for (arm, seed), value in values(result).items() if arm == "baseline"}
    difference = sum(ours[seed] - theirs[seed] for seed in (0, 1)) / 2
    assert result.arms[1].compared.mean == pytest.approx(difference)
    assert result.arms[1].differences == {"model.norm": ("rms-norm", "seednorm")}
    assert Comparison.load(tmp_path / "out") == result


def test_arms_with_one_seed_see_the_same_batches_and_start(tiny: dict[str, Any], tmp_path: Path) -> None:
    """SeeDNorm starts as RMSNorm, so the first losses of a pair agree, and those of two seeds don't."""
    result = compare(**tiny, out=tmp_path / "out")
    first = {(run.arm, run.seed): run.train[0].value for arm in result.arms for run in arm.runs}
    assert first["baseline", 0] == pytest.approx(first["seednorm", 0], abs=1e-6)
    assert first["baseline", 1] == pytest.approx(first["seednorm", 1], abs=1e-6)
    assert first["baseline", 0] != first["baseline", 1]


def test_the_same_call_again_repeats_nothing(tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = compare(**tiny, out=out)
    ended = summaries(out)
    again = compare(**tiny, out=out)
    assert summaries(out) == ended
    assert values(again) == values(first)


def test_a_new_arm_or_seed_reuses_the_rest(tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare(**tiny, out=out)
    ended = summaries(out)
    more = tiny | {"arms": ["baseline", "seednorm", "peri-ln"], "seeds": 3}
    result = compare(**more, out=out)
    after = summaries(out)
    assert len(ended) == 4
    assert len(after) == 9
    assert all(after[path] == ended[path] for path in ended)
    assert values(result) == values(compare(**more, out=tmp_path / "anew"))


def test_a_run_that_was_stopped_is_gone_on_with(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Delete one run's end: the next call redoes that run alone."""
    out = tmp_path / "out"
    first = compare(**tiny, out=out)
    victim = out / "runs" / first.arms[1].runs[0].id
    (victim / "summary.json").unlink()
    others = {path: time_ for path, time_ in summaries(out).items() if path.parent != victim}
    assert values(compare(**tiny, out=out)) == values(first)
    assert {path: time_ for path, time_ in summaries(out).items() if path.parent != victim} == others


def test_worker_processes_and_ray_give_what_one_process_gives(tiny: dict[str, Any], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    one = compare(**tiny, out=tmp_path / "one")
    two = compare(**tiny | {"jobs": 2}, out=tmp_path / "two")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        three = compare(**tiny | {"jobs": 2}, runner="ray", out=tmp_path / "three")
    finally:
        ray.shutdown()
    assert values(two) == pytest.approx(values(one), abs=1e-6)
    assert values(three) == values(two)


def test_tuning_gives_each_arm_its_best_rate_on_seeds_of_its_own(tiny: dict[str, Any], tmp_path: Path) -> None:
    tuned = compare(**tiny, tune={"lr": [0.01, 1, 3]}, out=tmp_path / "out")
    rate = RunConfig.parse({"model": {"hidden_size": 32}}).optimizer.options["lr"]
    for arm in tuned.arms:
        assert [c.values for c in arm.tuned.candidates] == [{"lr": 0.01}, {"lr": 1}, {"lr": 3}]
        best = min(arm.tuned.candidates, key=lambda candidate: candidate.score)
        assert arm.tuned.chosen == best.values != {"lr": 0.01}
        assert arm.tuned.seeds == [TUNING_SEED]
        own = json.loads((tmp_path / "out" / "runs" / arm.runs[0].id / "config.json").read_text())
        assert own["optimizer"]["lr"] == pytest.approx(rate * best.values["lr"])
    assert not {seed for _, seed in values(tuned)} & {TUNING_SEED}


def test_a_diverged_arm_is_reported_as_such(tiny: dict[str, Any], tmp_path: Path) -> None:
    patch = {"optimizer.lr": 1e18, "training.grad_clip": 1e30, "schedule": {"name": "constant", "warmup": 0.0}}
    spec = {"arms": ["baseline", "wild"], "patches": {"wild": patch}}
    result = compare(spec, **{k: v for k, v in tiny.items() if k != "arms"}, out=tmp_path / "out")
    assert result.arms[1].diverged == 2
    assert result.arms[1].compared.verdict == "diverged more"
    assert result.arms[1].compared.mean is None
    assert [run.status for run in result.arms[1].runs] == ["diverged", "diverged"]


def test_one_seed_claims_no_interval(tiny: dict[str, Any], tmp_path: Path) -> None:
    result = compare(**tiny | {"seeds": 1}, out=tmp_path / "out")
    compared = result.arms[1].compared
    assert compared.verdict == "one seed: no interval"
    assert (compared.low, compared.high, compared.p_value) == (None, None, None)


def test_a_flops_budget_buys_each_arm_what_it_can_pay(tiny: dict[str, Any], tmp_path: Path) -> None:
    by_tokens = compare(**tiny, out=tmp_path / "tokens")
    flops = by_tokens.arms[0].runs[0].flops
    spec = {"arms": ["baseline", "deep"], "patches": {"deep": {"model.depth": 4}}}
    rest = {k: v for k, v in tiny.items() if k not in ("arms", "tokens")}
    result = compare(spec, **rest, flops=1.001 * flops, out=tmp_path / "flops")
    base, deep = result.arms[0].runs[0], result.arms[1].runs[0]
    assert base.tokens == by_tokens.arms[0].runs[0].tokens
    assert deep.tokens < base.tokens
    assert deep.flops <= 1.001 * flops < deep.flops * (deep.tokens + 128) / deep.tokens


def test_a_specification_file_says_it_all(tiny: dict[str, Any], tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "spec.toml").write_text(
        f"""
        arms = ["baseline", "wide"]
        seeds = [5, 7]
        tokens = "1536"
        title = "Width"
        [run]
        model = {{ depth = 2, hidden_size = 32, num_heads = 2 }}
        data = {{ corpus = "text:{corpus}", sequence_length = 32, batch_size = 4, eval_bytes = 2048 }}
        [patches.wide]
        model.hidden_size = 64
        """
    )
    result = compare(tmp_path / "spec.toml", out=tmp_path / "out", jobs=1)
    assert result.title == "Width"
    assert result.seeds == [5, 7]
    changed = set(result.arms[1].differences)
    assert changed == {
        "model.hidden_size",
        "model.head_dim",
        "model.intermediate_size",
        "optimizer.lr",
    }


def started(tiny: dict[str, Any], out: Path, tokens: str) -> tuple[subprocess.Popen[str], list[str]]:
    """A comparison of four runs in two workers, of which one at least has begun to train; and its command."""
    sets = [f"--set={field}={value}" for field, value in tiny["values"].items()]
    command = ["-m", "assay", "compare", "--arms=baseline,seednorm", "--seeds=2", "--jobs=2", "--quiet"]
    arguments = [sys.executable, *command, f"--tokens={tokens}", f"--out={out}", *sets]
    process = subprocess.Popen(
        arguments,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
    )
    deadline = time.monotonic() + 90
    while not any(path.stat().st_size for path in out.glob("runs/*/metrics.jsonl")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process, arguments


def test_ctrl_c_keeps_everything_and_the_same_command_goes_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process, arguments = started(tiny, out, tokens="100k")
    os.killpg(process.pid, signal.SIGINT)
    _, message = process.communicate(timeout=240)
    assert process.returncode == 130
    assert message.strip() == "error: stopped, everything is saved; the same command goes on"
    assert list(out.glob("runs/*/checkpoint/state.json"))
    subprocess.run(arguments, check=True)
    whole = compare(**tiny | {"tokens": 100_000, "jobs": 2}, out=tmp_path / "whole")
    assert values(Comparison.load(out)) == values(whole)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"arms": ["baseline", "seednrm"]}, "nearest: seednorm"),
            ({"arms": ["baseline", "baseline"]}, "'baseline' is given twice"),
            ({"arms": ["peri-ln+mix-ln"]}, "both set 'model.placement'"),
            ({"arms": None}, "--arms baseline,seednorm"),
            ({"seeds": 0}, "at least one seed, not 0"),
            ({"seeds": -3}, "at least one seed, not -3"),
            ({"tokens": -5}, "greater than 0"),
            ({"tokens": "many"}, "'many' is not a number"),
            ({"tokens": 10}, "does not pay for one step"),
            ({"jobs": 0}, "at least one worker"),
            ({"runner": "slurm"}, "unknown runner 'slurm'"),
            ({"tune": {"optimizr.lr": [1]}}, "unknown field 'optimizr'"),
            ({"values": {"model.norm": "x"}}, "unknown norm 'x'"),
            ({"values": {"model.num_heads": 7}}, "does not divide"),
            ({"values": {"data.corpus": "text:/no/such"}}, "/no/such"),
        ],
    )
    def test_in_one_line_before_anything_is_written(
        self, tiny: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UserError) as refused:
            compare(**tiny | change, out=tmp_path / "out")
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "out").exists()

    def test_an_arm_with_a_wrong_value_is_named(self, tiny: dict[str, Any], tmp_path: Path) -> None:
        spec = {"arms": ["baseline", "odd"], "patches": {"odd": {"model.num_heads": 7}}}
        with pytest.raises(UserError, match=r"arm .odd..*does not divide"):
            compare(spec, **{k: v for k, v in tiny.items() if k != "arms"}, out=tmp_path / "out")

    def test_a_directory_of_another_comparison(self, tiny: dict[str, Any], tmp_path: Path) -> None:
        compare(**tiny, out=tmp_path / "out")
        with pytest.raises(UserError, match=r"belongs to a comparison with run\.training\.tokens=1536, not 3072"):
            compare(**tiny | {"tokens": 3072}, out=tmp_path / "out")
        with pytest.raises(UserError, match=r"tune\.lr"):
            compare(**tiny, tune={"lr": [1, 2]}, out=tmp_path / "out")

    def test_a_file_or_a_strange_directory(self, tiny: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="is a file"):
            compare(**tiny, out=tmp_path / "file")
        (tmp_path / "strange").mkdir()
        (tmp_path / "strange" / "notes.txt").write_text("")
        with pytest.raises(UserError, match=r"holds no comparison \(it has 'notes.txt'\)"):
            compare(**tiny, out=tmp_path / "strange")

    @pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
    def test_a_damaged_run_is_named(self, tiny: dict[str, Any], tmp_path: Path, name: str) -> None:
        first = compare(**tiny, out=tmp_path / "out")
        damaged = tmp_path / "out" / "runs" / first.arms[0].runs[0].id / name
        damaged.write_text('{"step": 1,\nnonsense\n')
        with pytest.raises(UserError, match="damaged") as refused:
            compare(**tiny, out=tmp_path / "out")
        assert str(damaged) in str(refused.value)

    @pytest.mark.parametrize("text", ["lr", "lr=", "=1", "lr=a,b", "lr=-1"])
    def test_a_search_of_another_form(self, text: str) -> None:
        with pytest.raises(UserError, match="tune"):
            parse_tune([text])


def test_a_search_is_parsed() -> None:
    assert parse_tune(["lr=0.5,1,2", "model.norm=seednorm,rms-norm"]) == {
        "lr": [0.5, 1, 2],
        "model.norm": ["seednorm", "rms-norm"],
    }


def test_candidates_are_all_combinations() -> None:
    spec = ComparisonSpec.parse({"arms": ["baseline"], "tune": {"lr": [1, 2], "optimizer.weight_decay": [0, 0.1]}})
    assert len(spec.candidates()) == 4
    assert ComparisonSpec.parse({"arms": ["baseline"]}).candidates() == [{}]


class TestWorkers:
    def jobs(self, *counts: int) -> list[list[Job]]:
        return [[Job({}, f"{arm}{seed}") for seed in range(count)] for arm, count in enumerate(counts)]

    def test_alone_jobs_go_seed_by_seed(self) -> None:
        found = batches(self.jobs(2, 3), 2, together=False)
        assert [[job.directory for job in batch] for batch in found] == [["00"], ["10"], ["01"], ["11"], ["12"]]

    def test_arms_that_share_a_graph_stay_together_and_keep_all_workers_busy(self) -> None:
        two = batches(self.jobs(4, 4), 2, together=True)
        assert [[job.directory for job in batch] for batch in two] == [
            ["00", "01", "02", "03"],
            ["10", "11", "12", "13"],
        ]
        assert [len(batch) for batch in batches(self.jobs(4), 2, together=True)] == [2, 2]

    def test_no_more_workers_than_runs_and_all_cores_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("assay.comparison.workers.available_cores", lambda: 8)
        config = RunConfig().with_vocabulary(257)
        assert choose(config, 20, None) == (8, 1)
        assert choose(config, 2, None) == (2, 4)
        assert choose(config, 20, 3) == (3, 2)


def test_a_dead_worker_is_a_failure_in_one_line(tiny: dict[str, Any], tmp_path: Path) -> None:
    process, _ = started(tiny, tmp_path / "out", tokens="10M")
    import psutil

    family = psutil.Process(process.pid).children(recursive=True)
    server = next(child for child in family if "forkserver" in " ".join(child.cmdline()))
    try:
        server.children()[0].kill()
        _, message = process.communicate(timeout=240)
    finally:
        for one in (process, *family):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    assert process.returncode == 1
    assert "a worker process died" in message
    assert "Traceback" not in message


def test_carrying_out_a_job_is_training_its_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig.parse({"model": {"depth": 1, "hidden_size": 16, "num_heads": 1}})
    with pytest.raises(AssayError):
        carry_out(Job(config.dump() | {"data": {"corpus": "text:/no/such"}}, str(tmp_path / "run")))
    assert issubclass(Interrupted, AssayError)
