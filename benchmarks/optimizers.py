"""Time of a step and memory of the state of every optimizer, beside torch's fused AdamW and pytorch-optimizer.

The parameters are those of a Llama-like network, the gradients fixed normal numbers: forward and backward passes are
left out. For each optimizer of the registry three contestants take turns on the same parameters, each round giving
one ratio: assay's, torch's fused AdamW, and the optimizer of that name of the package ``pytorch-optimizer``, where
it is installed and has one. Times and bytes are scaled from the network's size to 100M parameters, in proportion. The
first steps, where states are made, do not count, and neither do projections that are computed anew now and then.

An optimizer works element by element where it needs no product of matrices and no sum over more than one number.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from support import options
from support.figures import Spread, print_table, write_figures
from support.shapes import QUICK, SHAPES, Shape

if TYPE_CHECKING:
    import torch

LEARNING_RATE = 1e-5
SCALED = 100_000_000
PACKAGE = "pytorch-optimizer"
LOW_RANK = {"rank": 64, "update_proj_gap": 200, "scale": 0.25, "projection_type": "std"}
MATRICES: dict[str, dict[str, Any]] = {"muon": {"use_muon": True}, "galore": LOW_RANK, "fira": LOW_RANK}
"""What pytorch-optimizer's groups of matrices are told, with the settings that are assay's defaults."""
OTHERS: dict[str, dict[str, Any]] = {"muon": {"use_muon": False}}
Contestants = dict[str, "torch.optim.Optimizer"]


def peers() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    """pytorch-optimizer's classes by name; none where it is not installed."""
    try:
        package = importlib.import_module("pytorch_optimizer")
    except ImportError:
        return {}
    return {name: package.load_optimizer(name) for name in package.get_supported_optimizers()}


def contestants(name: str, model: torch.nn.Module) -> Contestants:
    import torch

    from assay.optim import optimizers, parameter_groups

    groups = parameter_groups(model)
    made: Contestants = {
        "assay": optimizers.build(name, params=groups, lr=LEARNING_RATE),
        "fused AdamW": torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True),
    }
    if peer := peers().get(name):
        keys = [MATRICES.get(name, {}) if group["role"] == "matrix" else OTHERS.get(name, {}) for group in groups]
        theirs = [{"params": group["params"], **key} for group, key in zip(groups, keys, strict=True)]
        made[PACKAGE] = peer(theirs, lr=LEARNING_RATE)
    return made


def seconds(optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Per step, over so many."""
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.step()
    return (time.perf_counter() - start) / steps


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors of the state."""
    import torch

    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def measure(name: str, shape: Shape, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, bytes and ratios of one optimizer's contestants, scaled to ``SCALED`` parameters."""
    import torch

    torch.manual_seed(0)
    model = shape.decoder()
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    scale = SCALED / sum(parameter.numel() for parameter in model.parameters())
    made = contestants(name, model)
    for optimizer in made.values():
        seconds(optimizer, 2)
    steps = {side: max(1, math.ceil(arguments.group / seconds(one, 1))) for side, one in made.items()}
    rounds: dict[str, list[float]] = {side: [] for side in made}
    for number in range(arguments.rounds):
        turn = number % len(made)
        for side in [*made][turn:] + [*made][:turn]:
            rounds[side].append(scale * seconds(made[side], steps[side]))
    return {
        "optimizer": name,
        "seconds": {side: Spread.of(times) for side, times in rounds.items()},
        "state_bytes": {side: scale * state_bytes(optimizer) for side, optimizer in made.items()},
        "over_fused_adamw": ratio(rounds["assay"], rounds["fused AdamW"]),
        "faster_than_peer": ratio(rounds[PACKAGE], rounds["assay"]) if PACKAGE in rounds else None,
    }


def ratio(one: list[float], other: list[float]) -> Spread:
    """Round by round."""
    return Spread.of([a / b for a, b in zip(one, other, strict=True)])


def show(results: list[dict[str, Any]], rounds: int) -> None:
    columns = ["optimizer", "ms", "time / fused AdamW", f"{PACKAGE} time / ours", "state MiB", "theirs"]
    rows = []
    for result in results:
        peer, kept = result["faster_than_peer"], result["state_bytes"]
        memory = [f"{kept[side] / 2**20:,.0f}" if side in kept else "-" for side in ("assay", PACKAGE)]
        times = [f"{1e3 * result['seconds']['assay'].median:,.0f}", result["over_fused_adamw"].show()]
        rows.append([result["optimizer"], *times, peer.show() if peer else "-", *memory])
    print_table(f"A step, per 100M parameters; median (min .. max) of {rounds} rounds", columns, rows)


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--size", default="512x8", help=", ".join(SHAPES))
    parser.add_argument("--names", type=options.names, help="of the registry; all by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--group", type=float, default=0.5, metavar="SECONDS", help="length of a group of steps")
    parser.add_argument("--threads", type=int, default=options.cores())
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.rounds, arguments.group = QUICK, 2, 0.001
    options.keep_memory()
    options.use_threads(arguments.threads)

    from assay.optim import optimizers

    shape = SHAPES[arguments.size]
    parameters = sum(parameter.numel() for parameter in shape.decoder().parameters())
    try:
        peer_version = version(PACKAGE)
        print(f"Beside {PACKAGE} {peer_version}")
    except PackageNotFoundError:
        peer_version = None
        print(f"Without {PACKAGE}: it is not installed")
    print(f"{arguments.threads} threads; measured on {parameters / 1e6:.1f}M parameters, scaled to 100M")
    results = []
    for name in arguments.names or optimizers.names():
        print(name, "...", file=sys.stderr)
        results.append(measure(name, shape, arguments))
    show(results, arguments.rounds)
    write_figures(
        arguments.json,
        "optimizers",
        quick=arguments.quick,
        threads=arguments.threads,
        rounds=arguments.rounds,
        parameters=parameters,
        peer={"name": PACKAGE, "version": peer_version},
        results=results,
    )


if __name__ == "__main__":
    main()
