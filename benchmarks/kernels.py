"""Speed of the fused kernels on a GPU, forward and backward, beside the plain functions that define them.

Contestants take turns in one process, and each round gives one ratio: the kernel; the plain function, eager and
under torch.compile; for RMSNorm also ``torch.nn.functional.rms_norm`` and, where ``liger-kernel`` is installed, that.
That the kernel does the work of the plain function is checked first. Sizes are the features of a row; the rows make
up ``--features`` in all, by default as few as a kernel is called for, and more than a cache holds.

Without a GPU there is nothing to measure; with TRITON_INTERPRET=1 the script runs on a CPU all the same, to try it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import math
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from support import options
from support.figures import Spread, print_table, write_figures

if TYPE_CHECKING:
    from torch import Tensor

HEAD_DIM = 128
FIELDS = ["function", "row", "features", "gains"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A function to measure: its plain and its kernel's form, peers that compute the same, and its tensors."""

    name: str
    plain: Callable[..., Tensor]
    kernel: Callable[..., Tensor]
    tensors: list[Tensor]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    peers: dict[str, Callable[..., Tensor]] = dataclasses.field(default_factory=dict)

    @property
    def bytes_at_least(self) -> int:
        """What must pass through memory, gains aside: forward x, z and y; backward x, z, dy, dx and dz."""
        moved = [t for t in self.tensors if t.shape[:-1] == self.tensors[0].shape[:-1]]
        size = sum(t.numel() * t.element_size() for t in moved)
        return 3 * size + 2 * self.tensors[0].numel() * self.tensors[0].element_size()


def cases(hidden: int, features: int, gains: str, device: str) -> list[Case]:
    import torch
    import torch.nn.functional as F

    from assay.nn.attention import gated_attention
    from assay.nn.kernels import rms_norm as fused_rms_norm
    from assay.nn.kernels import seednorm as fused_seednorm
    from assay.nn.kernels import sigmoid_gate as fused_gate
    from assay.nn.norm import rms_norm, seednorm

    torch.manual_seed(0)
    rows, size = features // hidden, min(HEAD_DIM, hidden)

    def draw(*shape: int, scale: float = 1.0, dtype: str = "bfloat16") -> Tensor:
        return (scale * torch.randn(*shape, device=device)).to(getattr(torch, dtype)).requires_grad_()

    x, heads = draw(rows, hidden), draw(rows, hidden // size, size)
    weight, alpha = draw(hidden, dtype=gains), draw(hidden, dtype=gains)
    beta = draw(hidden, scale=1 / math.sqrt(hidden), dtype=gains)
    peers = {"torch": lambda x, weight, eps: F.rms_norm(x, (hidden,), weight, eps)}
    with contextlib.suppress(ImportError):
        from liger_kernel.transformers.functional import liger_rms_norm

        peers["liger"] = functools.partial(liger_rms_norm, in_place=False)
    plain = [inspect.unwrap(f) for f in (rms_norm.rms_norm, seednorm.seednorm, gated_attention.sigmoid_gate)]
    several = {"num_heads": hidden // size, "eps": 1e-6}
    seed = [x, weight, alpha, beta]
    return [
        Case("rms_norm", plain[0], fused_rms_norm.rms_norm, [x, weight], {"eps": 1e-6}, peers),
        Case("seednorm", plain[1], fused_seednorm.seednorm, seed, {"num_heads": 1, "eps": 1e-6}),
        Case("seednorm by heads", plain[1], fused_seednorm.seednorm, seed, several),
        Case("gate by features", plain[2], fused_gate.sigmoid_gate, [heads, draw(rows, hidden // size, size)]),
        Case("gate by heads", plain[2], fused_gate.sigmoid_gate, [heads, draw(rows, hidden // size, 1)]),
    ]


def step(function: Callable[..., Tensor], case: Case, towards: Tensor) -> list[Tensor]:
    """The result and the gradients."""
    import torch

    y = function(*case.tensors, **case.arguments)
    return [y, *torch.autograd.grad(y, case.tensors, towards.to(y.dtype))]


def check_same_work(case: Case, towards: Tensor) -> float:
    """The greatest difference of the kernel from the plain function, relative to the greatest value.

    Raises ``SystemExit`` if it is above 2 %: a few roundings of bfloat16.
    """
    differences = []
    for ours, theirs in zip(step(case.kernel, case, towards), step(case.plain, case, towards), strict=True):
        difference = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()
        differences.append(difference.item())
    if not max(differences) <= 0.02:
        raise SystemExit(f"{case.name}: not the same work: the relative differences are {differences}")
    return max(differences)


def seconds(work: Callable[[], Any], steps: int) -> float:
    """Per step, over so many, until the device is done."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        work()
    wait()
    return (time.perf_counter() - start) / steps


def measure(case: Case, arguments: Any) -> dict[str, Any]:
    """Seconds per step of each contestant, round by round, and how much faster the kernel is."""
    import torch

    towards = torch.randn_like(case.tensors[0])
    difference = check_same_work(case, towards)
    contestants = {"kernel": case.kernel, "plain": case.plain, **case.peers}
    if arguments.compile:
        torch._dynamo.reset()
        contestants["compiled"] = torch.compile(case.plain, fullgraph=True, dynamic=False)
    works = {name: functools.partial(step, f, case, towards) for name, f in contestants.items()}
    for work in works.values():
        seconds(work, 3)
    steps = {name: max(1, math.ceil(arguments.group / seconds(work, 3))) for name, work in works.items()}
    rounds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(arguments.rounds):
        order = list(works)
        turn = number % len(order)
        for name in order[turn:] + order[:turn]:
            rounds[name].append(seconds(works[name], steps[name]))
    return {
        "relative_difference": difference,
        "seconds": {name: Spread.of(values) for name, values in rounds.items()},
        "speed_over": {
            name: Spread.of([b / a for a, b in zip(rounds["kernel"], values, strict=True)])
            for name, values in rounds.items()
            if name != "kernel"
        },
        "bytes_per_second": case.bytes_at_least / Spread.of(rounds["kernel"]).median,
    }


def show(results: list[dict[str, Any]], rounds: int) -> None:
    columns = [*FIELDS, "kernel, µs", "GB/s", "beside", "ratio of speed, median (min .. max)"]
    table = []
    for result in results:
        time_taken = f"{1e6 * result['seconds']['kernel'].median:,.0f}"
        own = [str(result[field]) for field in FIELDS] + [time_taken, f"{result['bytes_per_second'] / 1e9:,.0f}"]
        table += [[*own, name, ratio.show()] for name, ratio in result["speed_over"].items()]
    print_table(f"Fused kernels beside other ways, forward and backward, {rounds} rounds", columns, table)


def main() -> None:
    parser = options.parser(__doc__)
    numbers = lambda text: [int(name) for name in options.names(text)]  # noqa: E731
    parser.add_argument("--sizes", type=numbers, default=[1024, 2048, 4096, 8192], help="features of a row")
    parser.add_argument("--features", type=numbers, default=[2**20, 2**26], help="in all rows together")
    parser.add_argument("--gains", type=options.names, default=["bfloat16"], help="bfloat16, float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--group", type=float, default=0.1, metavar="SECONDS", help="length of a group of steps")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.features, arguments.rounds, arguments.group = [64], [2**10], 2, 0.001
        arguments.compile = False
    import torch

    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        print("Fused kernels: nothing is measured, since there is no CUDA device here.")
        write_figures(arguments.json, "kernels", quick=arguments.quick, results=[])
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    for setting in itertools.product(arguments.sizes, arguments.features, arguments.gains):
        for case in cases(*setting, device):
            print(case.name, *setting, "...", file=sys.stderr)
            results.append({**dict(zip(FIELDS, (case.name, *setting), strict=True)), **measure(case, arguments)})
    show(results, arguments.rounds)
    write_figures(arguments.json, "kernels", quick=arguments.quick, rounds=arguments.rounds, results=results)


if __name__ == "__main__":
    main()
