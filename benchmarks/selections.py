"""Memory and time of training some layers at a time, beside training all of them.

The same decoder, batches and rate for every contestant. Peak memory is that of a fresh process each, above what it
holds after its imports and a first small training; the optimizer's state is counted, at its largest. The time of a
step is measured in one process, in turns: forward, backward and update, with the redrawing of layers as it comes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from support import options
from support.figures import Spread, print_table, write_figures

if TYPE_CHECKING:
    from torch import Tensor

VOCAB_SIZE = 257
SCALES = {
    "full": {"depth": 8, "hidden_size": 384, "length": 128, "batch_size": 2},
    "quick": {"depth": 4, "hidden_size": 64, "length": 32, "batch_size": 2},
}


@dataclasses.dataclass(frozen=True)
class Contestant:
    optimizer: str
    selection: str
    options: dict[str, Any]
    beside: str
    """The contestant that trains all layers with the same steps."""


WINDOWS = {"layers": 2, "every": 4}
CONTESTANTS = {
    "adamw": Contestant("adamw", "all", {}, "adamw"),
    "lisa": Contestant("adamw", "lisa", WINDOWS, "adamw"),
    "lisa, states kept": Contestant("adamw", "lisa", {**WINDOWS, "reset_state": False}, "adamw"),
    "owlore": Contestant("galore", "owlore", WINDOWS, "adamw"),
    "muon": Contestant("muon", "all", {}, "muon"),
    "drop-muon": Contestant("muon", "drop", {}, "muon"),
}


class Training:
    """One contestant's decoder, optimizer and selection."""

    def __init__(self, contestant: Contestant, scale: dict[str, int]) -> None:
        import torch

        from assay.models import Decoder, ModelConfig
        from assay.models.initialization import initialize
        from assay.optim import optimizers, parameter_groups, selections

        shape = {"depth": scale["depth"], "hidden_size": scale["hidden_size"], "vocab_size": VOCAB_SIZE}
        self.model = Decoder(ModelConfig.parse({**shape, "max_length": scale["length"]}))
        initialize(self.model, 0, self.model.config.init_std)
        size = (scale["batch_size"], scale["length"] + 1)
        self.rows = torch.randint(VOCAB_SIZE, size, generator=torch.Generator().manual_seed(0))
        self.optimizer = optimizers.build(contestant.optimizer, params=parameter_groups(self.model), lr=1e-3)
        self.selection = selections.build(
            contestant.selection,
            contestant.options,
            model=self.model,
            optimizer=self.optimizer,
            seed=0,
            calibration=lambda: self.rows[:, :-1],
        )
        self.steps = self.state = 0

    def step(self) -> None:
        from torch.nn import functional as F

        self.selection(self.steps)
        logits: Tensor = self.model(self.rows[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), self.rows[:, 1:].flatten()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        self.state = max(self.state, sum(value.numel() * value.element_size() for value in kept))
        self.steps += 1

    def seconds(self, steps: int) -> float:
        """Per step, over so many."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        return (time.perf_counter() - start) / steps


def memory(name: str, scale: str, steps: int) -> dict[str, int]:
    """Bytes at the peak of a fresh process above its start, and of the optimizer's state at its largest."""
    command = [sys.executable, __file__, "--memory-of", name, "--scale", scale, "--steps", str(steps)]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


def print_memory(name: str, scale: str, steps: int) -> None:
    import psutil

    from assay.training import environment

    contestant = CONTESTANTS[name]
    Training(contestant, SCALES["quick"]).seconds(2)
    before = psutil.Process().memory_info().rss
    environment.reset_peak_memory()
    training = Training(contestant, SCALES[scale])
    training.seconds(steps)
    print(json.dumps({"peak": environment.peak_memory() - before, "state": training.state}))


def times(scale: str, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds per step of each, round by round, after a first round that does not count."""
    trainings = {name: Training(contestant, SCALES[scale]) for name, contestant in CONTESTANTS.items()}
    found: dict[str, list[float]] = {name: [] for name in trainings}
    for number in range(rounds + 1):
        for name in list(trainings)[:: 1 if number % 2 else -1]:
            seconds = trainings[name].seconds(steps)
            if number:
                found[name].append(seconds)
    return found


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of timing (default 3)")
    parser.add_argument("--steps", type=int, default=8, help="of a round, and of a process for memory (default 8)")
    parser.add_argument("--threads", type=int, default=options.cores(), help="of the CPU (default: all)")
    parser.add_argument("--scale", choices=sorted(SCALES), default="full")
    parser.add_argument("--memory-of", choices=list(CONTESTANTS), help="print one contestant's memory, as JSON")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.scale, arguments.rounds, arguments.steps = "quick", 1, 4
    options.use_threads(arguments.threads)
    if arguments.memory_of:
        print_memory(arguments.memory_of, arguments.scale, arguments.steps)
        return
    held = {name: memory(name, arguments.scale, arguments.steps) for name in CONTESTANTS}
    spent = times(arguments.scale, arguments.rounds, arguments.steps)
    results, rows = {}, []
    for name, contestant in CONTESTANTS.items():
        beside = contestant.beside
        ratio = Spread.of([a / b for a, b in zip(spent[name], spent[beside], strict=True)])
        peak = held[name]["peak"] / held[beside]["peak"]
        state = held[name]["state"] / held[beside]["state"]
        results[name] = {
            **held[name],
            "peak_ratio": peak,
            "state_ratio": state,
            "beside": beside,
            "time_ratio": ratio,
        }
        results[name]["seconds_per_step"] = Spread.of(spent[name])
        size = [f"{held[name][what] / 2**20:.1f}" for what in ("peak", "state")]
        rows.append([name, beside, size[0], f"{peak:.2f}", size[1], f"{state:.2f}", ratio.show()])
    columns = ["", "beside", "peak MiB", "ratio", "state MiB", "ratio", "time / all layers"]
    shape = ", ".join(f"{value} {what.replace('_', ' ')}" for what, value in SCALES[arguments.scale].items())
    print_table(f"Training some layers at a time ({shape})", columns, rows)
    write_figures(arguments.json, "selections", quick=arguments.quick, shape=SCALES[arguments.scale], results=results)


if __name__ == "__main__":
    main()
