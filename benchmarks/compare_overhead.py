"""What the machinery of a comparison adds to training: ``assay.compare`` beside a bare loop.

One arm, a few seeds, one process, one thread. The bare loop is written out below: the same networks, batches, steps
and evaluations and nothing else; it keeps its losses in a list. ``assay.compare`` also plans, hashes, logs, saves,
watches for a stop and draws its conclusions. Both must end with the same bits per byte, or the figures mean nothing.
What only the first comparison of a process pays (imports, counting FLOPs) is done before, and shown on its own.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import options
from support.figures import Spread, print_table, write_figures
from support.shapes import QUICK, SHAPES, SMALLEST
from support.texts import write_texts

if TYPE_CHECKING:
    from assay.data.windows import TokenData
    from assay.training.config import RunConfig


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Side = Callable[[int], list[float | None]]


def bare_run(config: RunConfig, data: TokenData) -> float:
    """The bits per byte after a run, by nothing but torch and the parts that define the run."""
    import torch
    import torch.nn.functional as F

    from assay.models import Decoder
    from assay.models.initialization import initialize
    from assay.optim import parameter_groups

    length, batch_size = config.data.sequence_length, config.data.batch_size
    training, evaluations = config.training, config.training.evaluations
    steps = (training.tokens or 0) // (batch_size * length)
    model = Decoder(config.model)
    initialize(model, config.seed, config.model.init_std)
    groups = [{**g, "weight_decay": 0.1 if g["decay"] else 0.0} for g in parameter_groups(model)]
    peak = config.optimizer.options["lr"]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)
    schedule = config.schedule.build()
    losses = []

    @torch.no_grad()
    def evaluate(share: float) -> float:
        batches = list(data.evaluation(length, batch_size))
        targets_in_text = sum(int((targets != -100).sum()) for _, targets in batches)
        nats, counted = 0.0, 0
        for inputs, targets in batches[: max(1, math.ceil(share * len(batches)))]:
            logits = model(inputs).flatten(0, 1)
            nats += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
            counted += int((targets != -100).sum())
        return nats / counted * targets_in_text / (math.log(2) * data.eval_bytes)

    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * schedule((step + 0.5) / steps)
        rows = data.batch(step, seed=config.seed, batch_size=batch_size, sequence_length=length)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        before, after = step / steps, (step + 1) / steps
        if step + 1 < steps and int(before * evaluations) < int(after * evaluations):
            evaluate(1 / 8)
    return evaluate(1.0)


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--size", default=SMALLEST, help=", ".join(SHAPES))
    parser.add_argument("--tokens", type=int, default=250_000, help="of each run")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5, help="how often the two take turns")
    parser.add_argument("--corpus", default="python-stdlib")
    arguments = parser.parse_args()
    options.keep_memory()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    options.use_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ASSAY_HOME"] = f"{folder}/home"
        if arguments.quick:
            arguments.size, arguments.tokens, arguments.seeds, arguments.pairs = QUICK, 2560, 2, 2
            arguments.corpus = f"text:{write_texts(Path(folder, 'texts'), documents=40, words=200)}"
        benchmark(arguments, Path(folder))


def benchmark(arguments: Any, folder: Path) -> None:
    from assay.comparison.compare import compare
    from assay.comparison.spec import ComparisonSpec
    from assay.data.windows import prepare

    shape = SHAPES[arguments.size]
    run = {
        "model": shape.model(),
        "data": {**shape.data(), "corpus": arguments.corpus},
        "training": {"compile": False},
    }

    def spec(tokens: int) -> ComparisonSpec:
        return ComparisonSpec.parse({"arms": ["baseline"], "seeds": arguments.seeds, "tokens": tokens, "run": run})

    def assay(name: str, tokens: int) -> list[float | None]:
        result = compare(spec(tokens), out=folder / name, jobs=1)
        return [found.value for found in result.arms[0].runs]

    planned = spec(arguments.tokens)
    configs = [planned.config(planned.arm("baseline"), seed) for seed in planned.seeds]
    data = prepare(configs[0].data)
    configs = [config.with_vocabulary(data.vocab_size) for config in configs]

    start = time.perf_counter()
    assay("first", shape.tokens_per_step)
    first = time.perf_counter() - start
    sides: dict[str, Side] = {
        "assay": lambda number: assay(f"pair{number}", arguments.tokens),
        "bare": lambda number: [bare_run(config, data) for config in configs],
    }
    times = take_turns(sides, arguments.pairs)
    start = time.perf_counter()
    assay("second", shape.tokens_per_step)
    once = first - (time.perf_counter() - start)

    overhead = {
        clock: Spread.of(
            [100 * (a / b - 1) for a, b in zip(times["assay", clock], times["bare", clock], strict=True)]
        )
        for clock in CLOCKS
    }
    rows = [[side, *(Spread.of(times[side, clock]).show() for clock in CLOCKS)] for side in sides]
    rows.append(["overhead in percent", *(overhead[clock].show("+.2f") for clock in CLOCKS)])
    each = Spread.of(times["bare", "wall"]).median / arguments.seeds
    title = f"{arguments.seeds} runs of {arguments.tokens:,} tokens ({each:.1f} s each), {arguments.pairs} pairs"
    print_table(title, ["side", "seconds, median (min .. max)", "of the processor"], rows)
    print(f"\nThe first comparison of a process takes {once:.2f} s more, once.")
    write_figures(
        arguments.json,
        "compare_overhead",
        quick=arguments.quick,
        shape=shape,
        tokens=arguments.tokens,
        seeds=arguments.seeds,
        pairs=arguments.pairs,
        seconds={side: {clock: Spread.of(times[side, clock]) for clock in CLOCKS} for side in sides},
        overhead_percent=overhead,
        first_comparison_seconds=once,
    )


def take_turns(sides: dict[str, Side], pairs: int) -> dict[tuple[str, str], list[float]]:
    """Seconds by side and clock. Raises ``SystemExit`` unless both sides end with the same values."""
    times: dict[tuple[str, str], list[float]] = {(side, clock): [] for side in sides for clock in CLOCKS}
    for number in range(pairs):
        print(f"pair {number + 1} of {pairs} ...", file=sys.stderr)
        values = {}
        for side in sorted(sides, reverse=bool(number % 2)):
            starts = {clock: read() for clock, read in CLOCKS.items()}
            values[side] = sides[side](number)
            for clock, read in CLOCKS.items():
                times[side, clock].append(read() - starts[clock])
        for one, other in zip(values["assay"], values["bare"], strict=True):
            if one is None or other is None or not abs(one - other) <= 1e-5:
                raise SystemExit(f"not the same work: the two sides end at {one} and {other} bits per byte")
    return times


if __name__ == "__main__":
    main()
