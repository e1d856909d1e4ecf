"""The benchmarks run and say what they are for; what they measure is never a condition."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SAID = {
    "train_speed": ["assay / transformers", "tokens/s", "matmul peak", "Peak memory"],
    "compare_speed": ["Trainer / assay:", "seconds"],
    "compare_overhead": ["overhead in percent", "The first comparison of a process"],
    "kernels": ["Fused kernels"],
    "optimizers": ["time / fused AdamW", "pytorch-optimizer", "state MiB", "adamp"],
    "selections": ["peak MiB", "state MiB", "time / all layers", "drop-muon"],
    "diagnose": ["time / plain forward", "matrix entropy / matrix nuclear norm"],
    "false_positives": ["Equal arms: stated to err in 5% or less", "in theory", "95 % interval"],
    "roofline": ["GFLOP/s", "rank correlation"],
}
Started = dict[str, tuple[subprocess.Popen[str], Path]]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """All of them at once, so that one starts while another works."""
    folder = tmp_path_factory.mktemp("figures")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = {}
    for name in SAID:
        command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--json", str(folder / f"{name}.json")]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder
        )
        processes[name] = process, folder / f"{name}.json"
    yield processes
    for process, _ in processes.values():
        process.kill()
        process.wait()


def test_every_benchmark_is_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == SAID.keys()


@pytest.mark.parametrize("name", sorted(SAID))
def test_a_quick_run_prints_its_table_and_writes_its_figures(started: Started, name: str) -> None:
    process, file = started[name]
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    for text in SAID[name]:
        assert text in printed
    figures: dict[str, Any] = json.loads(file.read_text())
    assert figures["benchmark"] == name
    assert figures["quick"] is True
    assert {"hardware", "versions", "created"} <= figures.keys()
    assert {"torch", "transformers"} <= figures["versions"].keys()


def test_kernels_are_measured_in_the_interpreter_if_it_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, str(FOLDER / "kernels.py"), "--quick", "--json", str(tmp_path / "kernels.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    results = json.loads((tmp_path / "kernels.json").read_text())["results"]
    assert {result["function"] for result in results} > {"rms_norm", "seednorm", "gate by heads"}
    for result in results:
        assert result["relative_difference"] < 0.02
        assert result["speed_over"]["plain"]["low"] > 0


class TestTheorems:
    """What ``false_positives.py`` prints beside its counts."""

    @pytest.fixture
    def benchmark(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.syspath_prepend(str(FOLDER))
        import importlib

        return importlib.import_module("false_positives")

    def test_power_without_a_shift_is_half_the_level(self, benchmark: Any) -> None:
        assert benchmark.theoretical_power(5, 0.0) == pytest.approx(0.025)

    def test_power_is_that_of_simulated_pairs(self, benchmark: Any) -> None:
        """20 000 comparisons of normal values, one standard deviation of a pair's difference apart."""
        import numpy as np
        from scipy import stats

        differences = np.random.default_rng(0).normal(1.0, 1.0, (20_000, 5))
        t = differences.mean(1) / (differences.std(1, ddof=1) / np.sqrt(5))
        shown = (t > stats.t.ppf(0.975, 4)).mean()
        assert benchmark.theoretical_power(5, 1.0) == pytest.approx(shown, abs=0.015)

    def test_no_run_is_in_two_comparisons(self, benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[float] = []

        def note(arms: list[Any], **options: Any) -> list[Any]:
            seen.extend(run.value for arm in arms for run in arm.runs)
            return arms

        monkeypatch.setattr("assay.comparison.statistics.compare_arms", note)
        values = [float(number) for number in range(50)]
        assert len(list(benchmark.comparisons(values, arms=3, pairs=5))) == 3
        assert seen == values[:45]
        seen.clear()
        list(benchmark.comparisons(values, arms=2, pairs=5, shift=0.5))
        assert seen[:10] == [0, 1, 2, 3, 4, 5.5, 6.5, 7.5, 8.5, 9.5]
