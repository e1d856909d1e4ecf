"""The time of a whole comparison: ``assay compare`` beside the same runs one after another in transformers' Trainer.

Two arms with four seeds each, from the start of the process to its end, with the corpus prepared beforehand for both.
The Trainer's eight runs are done in one process: Llama in the shape of assay's baseline (for both arms: Trainer has
no peri-ln), the same token files, tokens, batches, sequence length, learning rate and optimizer (adamw_torch_fused),
one evaluation of the same validation text and one saved model for each run, logging off. assay does what it does
unless told otherwise: five evaluations, checkpoints, statistics, a report, and as many workers as there are cores.

The first pair starts with an empty cache of compiled kernels, the others find what the first one compiled: both are
shown. Before and after, the machine is asked how many matrix products two processes of one thread do beside one
process of two threads: a comparison can gain by running side by side only what the machine gives there.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from support import options
from support.figures import Spread, print_table, write_figures
from support.shapes import QUICK, SHAPES, SMALLEST, Shape
from support.texts import write_texts

ARMS = ["baseline", "peri-ln"]


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=250_000, help="of each run")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3, help="how often the two take turns")
    parser.add_argument("--size", default=SMALLEST, help=", ".join(SHAPES))
    parser.add_argument("--corpus", default="python-stdlib")
    parser.add_argument("--trainer", type=Path, metavar="PLAN", help="only do the Trainer's runs of this plan")
    arguments = parser.parse_args()
    if arguments.trainer:
        trainer_runs(arguments.trainer)
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            arguments.size, arguments.tokens, arguments.seeds, arguments.pairs = QUICK, 1280, 1, 1
            arguments.corpus = f"text:{write_texts(Path(folder, 'texts'), documents=40, words=200)}"
        benchmark(arguments, Path(folder))


def benchmark(arguments: Any, folder: Path) -> None:
    kernels = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "kernels")}
    os.environ |= {"ASSAY_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", **kernels}
    shape = SHAPES[arguments.size]
    settings = {f"model.{name}": value for name, value in shape.model().items()}
    settings |= {f"data.{name}": value for name, value in shape.data().items()} | {"data.corpus": arguments.corpus}
    plan = folder / "plan.json"
    plan.write_text(json.dumps(trainer_plan(shape, settings, arguments)))
    before = side_by_side()
    sides: dict[str, list[float]] = {"assay": [], "Trainer": []}
    values: dict[str, list[float]] = {"assay": [], "Trainer": []}
    for number in range(arguments.pairs):
        out = folder / f"pair{number}"
        for side in sides:
            command = assay_command(settings, arguments, out / "assay") if side == "assay" else [__file__]
            command += [] if side == "assay" else ["--trainer", str(plan)]
            print(f"pair {number + 1} of {arguments.pairs}: {side} ...", file=sys.stderr)
            start = time.perf_counter()
            done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
            sides[side].append(time.perf_counter() - start)
            if done.returncode:
                raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
        values["assay"].append(baseline_value(out / "assay"))
        values["Trainer"].append(json.loads(Path(f"{plan}.result").read_text())["bits_per_token"])
    show(sides, values, arguments)
    first, *others = [b / a for a, b in zip(sides["assay"], sides["Trainer"], strict=True)]
    ratio = {"kernels to compile": Spread.of([first])} | ({"kernels cached": Spread.of(others)} if others else {})
    print("\nTrainer / assay: " + ", ".join(f"{spread.show()} with {name}" for name, spread in ratio.items()))
    gain = Spread.of([before, side_by_side()])
    print(f"matrix products: two processes of one thread do {gain.show()} of what one process of two threads does")
    write_figures(
        arguments.json,
        "compare_speed",
        quick=arguments.quick,
        shape=shape,
        arms=ARMS,
        seeds=arguments.seeds,
        tokens=arguments.tokens,
        corpus=arguments.corpus if not arguments.quick else "made up",
        cores=options.cores(),
        seconds={side: Spread.of(times) for side, times in sides.items()},
        ratio=ratio,
        two_processes_over_two_threads=gain,
        baseline_bits_per_byte={side: Spread.of(found) for side, found in values.items()},
    )


PRODUCTS = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
a, b = torch.randn(2048, 128), torch.randn(128, 344)
for _ in range(200):
    a @ b
start, done = time.perf_counter(), 0
while time.perf_counter() - start < 3:
    for _ in range(100):
        a @ b
    done += 100
print(done / (time.perf_counter() - start))
"""


def side_by_side() -> float:
    """Matrix products per second of two processes with one thread each, over those of one process with two."""

    def rate(processes: int, threads: int) -> float:
        command = [sys.executable, "-c", PRODUCTS, str(threads)]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        return sum(float(process.communicate()[0]) for process in started)

    return rate(2, 1) / rate(1, 2)


def assay_command(settings: dict[str, Any], arguments: Any, out: Path) -> list[str]:
    values = [f"--set={field}={value}" for field, value in settings.items()]
    amount = ["--seeds", str(arguments.seeds), "--tokens", str(arguments.tokens)]
    return ["-m", "assay", "compare", "--arms", ",".join(ARMS), *amount, *values, "--out", str(out), "--quiet"]


def baseline_value(out: Path) -> float:
    from assay.comparison.result import Comparison

    mean = Comparison.load(out).baseline.mean
    return math.nan if mean is None else mean


def trainer_plan(shape: Shape, settings: dict[str, Any], arguments: Any) -> dict[str, Any]:
    """Prepares the corpus, and says what the Trainer's process is to do in plain data."""
    import dataclasses

    from assay.data.windows import prepare
    from assay.training.config import read_run_config

    config = read_run_config({}, settings)
    data = prepare(config.data)
    return {
        "shape": dataclasses.asdict(shape),
        "files": {"train": str(data.train.filename), "validation": str(data.validation.filename)},
        "dtype": data.train.dtype.str,
        "steps": arguments.tokens // shape.tokens_per_step,
        "runs": len(ARMS) * arguments.seeds,
        "learning_rate": config.optimizer.options["lr"],
    }


def trainer_runs(path: Path) -> None:
    """The runs, one after another, as a script on Trainer does them."""
    import numpy as np
    import torch
    from transformers import Trainer, TrainingArguments

    plan = json.loads(path.read_text())
    shape = Shape(**plan["shape"])
    length, steps = shape.sequence_length, plan["steps"]

    class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __init__(self, path: str) -> None:
            self.ids = np.memmap(path, plan["dtype"], mode="r")

        def __len__(self) -> int:
            return len(self.ids) // length

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            ids = torch.from_numpy(self.ids[index * length : (index + 1) * length].astype(np.int64))
            return {"input_ids": ids, "labels": ids}

    train, validation = Windows(plan["files"]["train"]), Windows(plan["files"]["validation"])
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(plan["runs"]):
            arguments = TrainingArguments(
                f"{folder}/{seed}",
                max_steps=steps,
                per_device_train_batch_size=shape.batch_size,
                per_device_eval_batch_size=shape.batch_size,
                optim="adamw_torch_fused",
                learning_rate=plan["learning_rate"],
                weight_decay=0.1,
                adam_beta2=0.95,
                lr_scheduler_type="warmup_stable_decay",
                warmup_steps=max(1, round(0.05 * steps)),
                lr_scheduler_kwargs={"num_decay_steps": round(0.2 * steps), "decay_type": "linear"},
                logging_strategy="no",
                save_strategy="no",
                eval_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                seed=seed,
            )
            trainer = Trainer(shape.llama(seed), arguments, train_dataset=train, eval_dataset=validation)
            trainer.train()
            losses.append(trainer.evaluate()["eval_loss"])
            trainer.save_model()
    result = {"bits_per_token": sum(losses) / len(losses) / math.log(2)}
    Path(f"{path}.result").write_text(json.dumps(result))


def show(sides: dict[str, list[float]], values: dict[str, list[float]], arguments: Any) -> None:
    rows = [
        [side, f"{Spread.of(times).show('.1f')}", f"{Spread.of(values[side]).show('.3f')}"]
        for side, times in sides.items()
    ]
    runs = f"{len(ARMS)} arms × {arguments.seeds} seeds × {arguments.tokens:,} tokens, {options.cores()} cores"
    print_table(f"{runs}, {arguments.pairs} pairs", ["side", "seconds", "Llama's bits per byte"], rows)


if __name__ == "__main__":
    main()
