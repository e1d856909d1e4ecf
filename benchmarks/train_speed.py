"""Training speed: assay's decoder beside transformers' Llama.

The same shape, weights, batches and optimizer (fused AdamW) in one process; groups of steps take turns, and each
round gives one ratio. A step is forward, backward, clipping and update, as the training loop does it: assay through
``Objective``, transformers through ``LlamaForCausalLM`` with sdpa attention. That both do the same work is checked
first: with copied weights they must give one loss. Peak memory is that of a fresh process for each side.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from support import options
from support.figures import Spread, print_table, write_figures
from support.shapes import QUICK, SHAPES, VOCAB_SIZE, Shape, copy_of

if TYPE_CHECKING:
    from torch import Tensor, nn

LEARNING_RATE = 1e-3
DTYPES = ("float32", "bfloat16")
SIDES = ("assay", "transformers")


@dataclasses.dataclass
class Side:
    """One of those compared: a network, its loss as a function of ids and targets, and its optimizer."""

    name: str
    module: nn.Module
    loss: Callable[..., Tensor]

    def __post_init__(self) -> None:
        from assay.optim import optimizers, parameter_groups

        groups = parameter_groups(self.module)
        self.optimizer = optimizers.build("adamw", params=groups, lr=LEARNING_RATE)
        self.parameters = list(self.module.parameters())

    def step(self, rows: Tensor) -> None:
        import torch

        self.loss(rows[:, :-1], rows[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self, batches: list[Tensor], steps: int) -> float:
        """Per step, over so many."""
        start = time.perf_counter()
        for step in range(steps):
            self.step(batches[step % len(batches)])
        return (time.perf_counter() - start) / steps


def assay_side(decoder: nn.Module, dtype: str, *, compiled: bool = False) -> Side:
    from assay.losses.cross_entropy import CrossEntropy
    from assay.training.compilation import compile_layers
    from assay.training.objective import Objective

    objective = Objective(decoder.train(), CrossEntropy(), dtype)
    name = "assay compiled" if compiled else "assay"
    if compiled:
        compile_layers(objective.model)
    return Side(name, objective, objective)


def transformers_side(llama: nn.Module, dtype: str, *, compiled: bool = False) -> Side:
    import torch

    llama.train()
    call = torch.compile(llama) if compiled else llama

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            return call(input_ids=ids, labels=ids, shift_labels=targets.contiguous()).loss

    return Side("transformers compiled" if compiled else "transformers", llama, loss)


def check_same_work(shape: Shape, batch: Tensor) -> float:
    """The difference of the two losses with copied weights. Raises ``SystemExit`` if it is above 1e-4."""
    import torch

    llama = shape.llama()
    sides = [assay_side(copy_of(llama), "float32"), transformers_side(llama, "float32")]
    with torch.no_grad():
        one, other = (side.loss(batch[:, :-1], batch[:, 1:]).item() for side in sides)
    if not abs(one - other) <= 1e-4:
        raise SystemExit(f"{shape.name}: not the same work: the losses are {one:.6f} and {other:.6f}")
    return abs(one - other)


def measure(shape: Shape, dtype: str, arguments: Any) -> dict[str, Any]:
    """Seconds per step of each side, round by round, and what compiling takes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    size = (shape.batch_size, shape.sequence_length + 1)
    batches = [torch.randint(VOCAB_SIZE, size, generator=generator) for _ in range(4)]
    difference = check_same_work(shape, batches[0])
    torch._dynamo.reset()
    llama = shape.llama()
    sides = [assay_side(copy_of(llama), dtype), transformers_side(llama, dtype)]
    if arguments.compile:
        sides.append(assay_side(copy_of(shape.llama()), dtype, compiled=True))
    if arguments.compile_peer:
        sides.append(transformers_side(shape.llama(), dtype, compiled=True))
    first = {side.name: side.seconds(batches, 1) for side in sides}
    steps = {side.name: max(1, math.ceil(arguments.group / side.seconds(batches, 2))) for side in sides}
    rounds: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(arguments.rounds):
        turn = number % len(sides)
        for side in sides[turn:] + sides[:turn]:
            rounds[side.name].append(side.seconds(batches, steps[side.name]))
    return {
        "loss_difference": difference,
        "seconds_per_step": {name: Spread.of(values) for name, values in rounds.items()},
        "ratios": ratios(rounds),
        "compile_seconds": {
            name: first[name] - Spread.of(rounds[name]).median for name in rounds if "compiled" in name
        },
        "tokens_per_second": {n: shape.tokens_per_step / Spread.of(values).median for n, values in rounds.items()},
    }


def ratios(rounds: dict[str, list[float]]) -> dict[str, Spread]:
    """Speed of assay over that of transformers, round by round."""
    pairs = [
        ("assay", "transformers"),
        ("assay compiled", "transformers"),
        ("assay compiled", "transformers compiled"),
    ]
    return {
        f"{ours} / {theirs}": Spread.of([b / a for a, b in zip(rounds[ours], rounds[theirs], strict=True)])
        for ours, theirs in pairs
        if ours in rounds and theirs in rounds
    }


def matmul_peak(dtype: str, sizes: list[int]) -> float:
    """The best FLOP/s of a product of two square matrices."""
    import torch

    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
        a @ b
        for _ in range(5):
            start = time.perf_counter()
            a @ b
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def start_compiler() -> float:
    """Seconds that a process's first compilation takes, with nothing cached, even of next to nothing."""
    import torch

    start = time.perf_counter()
    torch.compile(lambda x: x.sin() + 1)(torch.ones(8))
    return time.perf_counter() - start


def memory(side: str, shape: Shape, dtype: str, threads: int) -> dict[str, int]:
    """Bytes at the peak of a fresh process that does three steps, and how far that is above its imports."""
    command = [sys.executable, __file__, "--memory-of", side, "--sizes", shape.name, "--dtypes", dtype]
    command += ["--threads", str(threads)]
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=usual)
    return json.loads(done.stdout)


def print_memory(side: str, shape: Shape, dtype: str) -> None:
    import psutil
    import torch

    from assay.training import environment

    def train(shape: Shape) -> None:
        made = assay_side(shape.decoder(), dtype) if side == "assay" else transformers_side(shape.llama(), dtype)
        made.seconds([torch.randint(VOCAB_SIZE, (shape.batch_size, shape.sequence_length + 1))], 3)

    train(SHAPES[QUICK])
    before = psutil.Process().memory_info().rss
    train(shape)
    peak = environment.peak_memory()
    print(json.dumps({"peak": peak, "above_imports": peak - before}))


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--sizes", type=options.names, default=["128x4", "256x6", "512x8"], help=", ".join(SHAPES))
    parser.add_argument("--dtypes", type=options.names, default=list(DTYPES), help=", ".join(DTYPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--group", type=float, default=1.0, metavar="SECONDS", help="length of a group of steps")
    parser.add_argument("--threads", type=int, default=options.cores())
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave out assay compiled")
    parser.add_argument("--compile-peer", action="store_true", help="transformers compiled, too")
    parser.add_argument("--memory-of", choices=SIDES, help="only print one side's peak memory")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.dtypes, arguments.rounds, arguments.group = [QUICK], ["float32"], 2, 0.02
        arguments.compile = arguments.compile_peer = False
    if arguments.memory_of:
        options.use_threads(arguments.threads)
        print_memory(arguments.memory_of, SHAPES[arguments.sizes[0]], arguments.dtypes[0])
        return
    options.keep_memory()
    options.use_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        benchmark(arguments)


def benchmark(arguments: Any) -> None:
    squares = [256] if arguments.quick else [1024, 1536, 2048]
    peaks = {dtype: matmul_peak(dtype, squares) for dtype in arguments.dtypes}
    first_compilation = start_compiler() if arguments.compile or arguments.compile_peer else None
    pairs = [(SHAPES[size], dtype) for size in arguments.sizes for dtype in arguments.dtypes]
    results = [run(shape, dtype, peaks[dtype], arguments) for shape, dtype in pairs]
    show(results, peaks, arguments)
    if first_compilation is not None:
        print(f"\nCompilation comes on top of {first_compilation:.1f} s for the first one of a process.")
    write_figures(
        arguments.json,
        "train_speed",
        quick=arguments.quick,
        threads=arguments.threads,
        rounds=arguments.rounds,
        matmul_peak_flops=peaks,
        first_compilation_seconds=first_compilation,
        results=results,
    )


def run(shape: Shape, dtype: str, peak: float, arguments: Any) -> dict[str, Any]:
    """All figures of one shape and precision."""
    from assay.training.flops import flops_per_token

    print(f"{shape.name} {dtype} ...", file=sys.stderr)
    measured = measure(shape, dtype, arguments)
    flops = flops_per_token(shape.decoder().config, shape.sequence_length)
    return {
        "shape": shape,
        "dtype": dtype,
        "flops_per_token": flops,
        **measured,
        "share_of_peak": {name: flops * speed / peak for name, speed in measured["tokens_per_second"].items()},
        "memory": {side: memory(side, shape, dtype, arguments.threads) for side in SIDES},
    }


def show(results: list[dict[str, Any]], peaks: dict[str, float], arguments: Any) -> None:
    measured = ", ".join(f"{dtype} {flops / 1e9:,.0f} GFLOP/s" for dtype, flops in peaks.items())
    print(f"{arguments.threads} threads; matmul peak: {measured}")
    speeds, compared, memories = [], [], []
    for result in results:
        network = f"{result['shape'].name} {result['dtype']}"
        for name, speed in result["tokens_per_second"].items():
            compiling = result["compile_seconds"].get(name)
            shown = "-" if compiling is None else f"{compiling:.1f}"
            speeds.append([network, name, f"{speed:,.0f}", f"{result['share_of_peak'][name]:.0%}", shown])
        for pair, ratio in result["ratios"].items():
            compared.append([network, pair, ratio.show(), f"{result['loss_difference']:.0e}"])
        ours, theirs = (result["memory"][side] for side in SIDES)
        mebibytes = [f"{side[key] / 2**20:,.0f}" for key in ("peak", "above_imports") for side in (ours, theirs)]
        memories.append([network, *mebibytes, f"{theirs['peak'] / ours['peak']:.2f}"])
    print_table("Speed", ["network", "side", "tokens/s", "of peak", "compile s"], speeds)
    columns = ["network", "pair", "ratio of speed, median (min .. max)", "loss difference"]
    print_table(f"assay over transformers, {arguments.rounds} rounds", columns, compared)
    columns = ["network", *SIDES, *(f"{side} above imports" for side in SIDES), "transformers / assay"]
    print_table("Peak memory in MiB, eager, in a process of its own", columns, memories)


if __name__ == "__main__":
    main()
