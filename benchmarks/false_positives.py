"""How often a comparison errs: false positives where arms are equal, and power where they differ by a known amount.

Many tiny networks (16 features, one layer, two dozen steps on a made-up text) are trained by the real loop through
the real runner. An arm is then compared with itself: arms of n runs each, no run in two comparisons, through the real
statistics. A verdict "better" or "worse" is false; the share of comparisons with one is stated to be 5 % for one arm
beside the baseline, and at most 5 % for four (Holm). For power a shift is added to one arm's values, in units of the
standard deviation of a pair's difference; beside it stands what the noncentral t distribution says.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import options
from support.figures import print_table, write_figures
from support.texts import write_texts

if TYPE_CHECKING:
    from assay.comparison.runners import Job
    from assay.training.config import RunConfig

ALPHA = 0.05
SHIFTS = (0.5, 1.0, 2.0, 4.0)
BATCH = 25
"""Runs that a worker does before it reports."""


def tiny(corpus: Path, steps: int) -> RunConfig:
    from assay.training.config import read_run_config

    return read_run_config(
        {
            "model": {"depth": 1, "hidden_size": 16, "num_heads": 2},
            "data": {"corpus": f"text:{corpus}", "sequence_length": 32, "batch_size": 4, "eval_bytes": 2048},
            "optimizer": {"lr": 3e-3},
            "training": {"tokens": steps * 4 * 32, "evaluations": 1, "compile": False},
        }
    )


def trained(config: RunConfig, runs: int, cache: Path | None, workers: int, folder: Path) -> list[float]:
    """The final bits per byte of the seeds 0 .. runs − 1, from the cache where it has them.

    Raises ``SystemExit`` if the cache is of other runs, or a run diverges.
    """
    from assay.comparison.runners import runners
    from assay.data.windows import prepare
    from assay.files import write_json

    data = prepare(config.data)
    identity = config.with_vocabulary(data.vocab_size).run_id(data.fingerprint)
    kept: dict[str, Any] = {"runs_like": identity, "values": {}}
    if cache is not None and cache.exists():
        kept = json.loads(cache.read_text())
        if kept["runs_like"] != identity:
            raise SystemExit(f"{cache} holds values of other runs; delete it or name another file")
    values = {int(seed): value for seed, value in kept["values"].items()}
    missing = [seed for seed in range(runs) if seed not in values]
    if not missing:
        return [values[seed] for seed in range(runs)]
    batches = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
    with runners.build("local", workers=workers, threads=1) as runner:
        done = runner.run([[job(config, seed, folder) for seed in batch] for batch in batches])
        for number, (seed, value) in enumerate(map(collect, done), start=1):
            if value is None:
                raise SystemExit(f"the run with seed {seed} diverged; it should not")
            values[seed] = value
            if cache is not None and (number % 250 == 0 or number == len(missing)):
                write_json(cache, {"runs_like": identity, "values": values})
            if number % 250 == 0:
                print(f"{number} of {len(missing)} runs", file=sys.stderr)
    return [values[seed] for seed in range(runs)]


def job(config: RunConfig, seed: int, folder: Path) -> Job:
    from assay.comparison.runners import Job

    return Job(config.with_seed(seed).dump(), str(folder / str(seed)))


def collect(done: Job) -> tuple[int, float | None]:
    """Seed and value of a run that is over; its directory is deleted."""
    from assay.training.run_directory import RunDirectory

    directory = RunDirectory(done.directory)
    summary = directory.summary()
    shutil.rmtree(directory.path)
    assert summary is not None
    return summary.seed, summary.bits_per_byte


def comparisons(values: Sequence[float], arms: int, pairs: int, shift: float = 0.0) -> Iterator[list[str]]:
    """The verdicts of each comparison of ``arms`` arms, the first with no verdict; the last arm is shifted."""
    from assay.comparison.statistics import compare_arms

    size = arms * pairs
    for start in range(0, len(values) - size + 1, size):
        own = [list(values[start + pairs * arm : start + pairs * (arm + 1)]) for arm in range(arms)]
        own[-1] = [value + shift for value in own[-1]]
        compared = compare_arms([arm_result(f"arm {arm}", own[arm]) for arm in range(arms)], alpha=ALPHA)
        yield [arm.compared.verdict for arm in compared if arm.compared is not None]


def arm_result(name: str, values: Sequence[float]) -> Any:
    from assay.comparison.result import ArmResult, RunResult

    spent = {"tokens": 1, "flops": 1.0, "seconds": 1.0, "tokens_per_second": 1.0, "peak_memory": 1, "parameters": 1}
    runs = [
        RunResult(arm=name, seed=seed, id=f"{name} {seed}", status="complete", value=value, **spent)
        for seed, value in enumerate(values)
    ]
    return ArmResult(name=name, runs=runs)


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    """A count of comparisons with its share and Clopper and Pearson's interval."""
    from assay.comparison.statistics import clopper_pearson

    low, high = clopper_pearson(sum(hits), len(hits))
    return {"count": sum(hits), "comparisons": len(hits), "rate": sum(hits) / len(hits), "low": low, "high": high}


def theoretical_power(pairs: int, shift: float) -> float:
    """P(T > t(n−1; 1 − α/2)) with T of the noncentral t distribution, n − 1 degrees of freedom, shift · √n."""
    from scipy import stats

    return float(stats.nct.sf(stats.t.ppf(1 - ALPHA / 2, pairs - 1), pairs - 1, shift * math.sqrt(pairs)))


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--runs", type=int, default=5000, help="networks to train")
    parser.add_argument("--steps", type=int, default=24, help="of each")
    parser.add_argument("--pairs", type=lambda text: [int(n) for n in text.split(",")], default=[3, 5])
    parser.add_argument("--arms", type=int, default=4, help="arms beside the baseline in the second design")
    parser.add_argument("--jobs", type=int, default=options.cores(), help="worker processes")
    parser.add_argument("--cache", type=Path, metavar="FILE", help="keep and reuse the runs' final values")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs, arguments.steps, arguments.pairs, arguments.arms, arguments.jobs = 24, 8, [3], 2, 1
    options.use_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ASSAY_HOME"] = f"{folder}/home"
        texts = write_texts(Path(folder, "texts"), documents=60, words=120)
        lines = [json.dumps({"text": path.read_text()}) for path in sorted(texts.iterdir())]
        corpus = Path(folder, "corpus.jsonl")
        corpus.write_text("\n".join(lines))
        start = time.perf_counter()
        config = tiny(corpus, arguments.steps)
        values = trained(config, arguments.runs, arguments.cache, arguments.jobs, Path(folder, "runs"))
        seconds = time.perf_counter() - start
    report(values, seconds, arguments)


def report(values: list[float], seconds: float, arguments: Any) -> None:
    import numpy as np
    from scipy import stats

    spread = float(np.std(values, ddof=1))
    shape = {"skewness": float(stats.skew(values)), "excess_kurtosis": float(stats.kurtosis(values))}
    print(f"{len(values)} runs in {seconds:.0f} s: {np.mean(values):.4f} ± {spread:.4f} bits per byte, ", end="")
    print(f"skewness {shape['skewness']:+.2f}, excess kurtosis {shape['excess_kurtosis']:+.2f}")

    false = []
    for others in (1, arguments.arms):
        for pairs in arguments.pairs:
            verdicts = list(comparisons(values, 1 + others, pairs))
            wrong = [any(verdict in ("better", "worse") for verdict in found) for found in verdicts]
            false.append({"arms": others, "pairs": pairs, **rate(wrong)})
    rows = [[f"{f['arms']} beside the baseline", str(f["pairs"]), *shown(f)] for f in false]
    columns = ["arms", "seeds", "comparisons", "false verdicts", "share", "95 % interval"]
    print_table(f"Equal arms: stated to err in {ALPHA:.0%} or less", columns, rows)

    power = []
    for pairs in arguments.pairs:
        for shift in SHIFTS:
            found = [v[0] == "worse" for v in comparisons(values, 2, pairs, shift * spread * math.sqrt(2))]
            theory = theoretical_power(pairs, shift)
            power.append({"pairs": pairs, "shift": shift, "theory": theory, **rate(found)})
    rows = [[f"{p['shift']} standard deviations", str(p["pairs"]), *shown(p), f"{p['theory']:.1%}"] for p in power]
    columns = ["shift", "seeds", "comparisons", "shown", "share", "95 % interval", "in theory"]
    print_table("One arm worse by a known amount: power", columns, rows)
    write_figures(
        arguments.json,
        "false_positives",
        quick=arguments.quick,
        alpha=ALPHA,
        runs=len(values),
        steps=arguments.steps,
        seconds=seconds,
        mean=float(np.mean(values)),
        standard_deviation=spread,
        **shape,
        false_positives=false,
        power=power,
    )


def shown(found: dict[str, Any]) -> list[str]:
    interval = f"{found['low']:.1%} .. {found['high']:.1%}"
    return [str(found["comparisons"]), str(found["count"]), f"{found['rate']:.1%}", interval]


if __name__ == "__main__":
    main()
