"""The training loop.

A run is a pure function of its configuration: batch, random numbers and learning rate of a step follow from
(seed, step) alone, so a checkpoint holds no state of loaders or generators, and a run that was stopped anywhere
ends with the same weights as one that was not.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from assay.data.windows import TokenData, prepare
from assay.errors import Interrupted
from assay.models import Decoder
from assay.models.initialization import initialize
from assay.optim import build_optimizer
from assay.training import checkpoint, environment
from assay.training.averaging import Averaging
from assay.training.budget import Budget
from assay.training.compilation import as_written, compile_layers, repays
from assay.training.config import RunConfig, read_run_config
from assay.training.devices import accelerator_for
from assay.training.evaluation import evaluate
from assay.training.objective import Objective
from assay.training.progress import ProgressBar
from assay.training.run_directory import RunDirectory, Summary

LOGGED_TOGETHER = 20
"""Steps whose losses are fetched from the device and written at once."""


class Stop(Protocol):
    """Anything that can say that a run should stop: a ``threading`` or ``multiprocessing`` event."""

    def is_set(self) -> bool: ...


def train(
    config: RunConfig | str | Path | Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    values: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: bool = False,
    sharing: int = 1,
    stop: Stop | None = None,
) -> Summary:
    """Train one run in the directory ``out`` and return how it ended.

    ``config`` is a configuration, a TOML file or a table; ``values`` are dotted fields to set over it. With
    ``resume`` a run that is over is returned as it is, and one that was stopped goes on from its last checkpoint; the
    weights at the end are the same as without the stop (bit for bit on a CPU). A loss that is not
    finite ends the run as *diverged*. Ctrl-C, or ``stop`` once it is set, saves and raises ``Interrupted``.
    ``sharing`` is the number of like runs that this process will do one after another, over which the cost of
    compiling is spread.

    Raises ``UserError`` for a directory, corpus or checkpoint that cannot be used, ``AssayError`` if the disk is
    full; the last good state stays.
    """
    config = read_run_config(config, values)
    data = prepare(config.data)
    config = config.with_vocabulary(data.vocab_size)
    config.start.build(seed=config.seed)  # raises if there is nothing to start from, before anything is written
    directory = RunDirectory(out)
    budget = Budget.of(config)
    accelerator = accelerator_for(config, directory.path)
    if accelerator.is_main_process:
        directory.open(config, resume=resume)
    accelerator.wait_for_everyone()
    if config.training.trackers:
        accelerator.init_trackers("trackers", config={"seed": config.seed})
    finished = directory.summary()
    if finished is not None:
        return finished
    config = directory.as_begun(config)
    run = _Run(config, directory, data, budget, accelerator, sharing)
    shown = progress and accelerator.is_main_process
    with ProgressBar(directory.path.name, shown=shown) as bar, _interruptions(stop) as stopped:
        summary = run.go(bar, stopped)
    if accelerator.is_main_process:
        directory.finish(summary)
        run.averaging.forget()
    accelerator.end_training()
    return summary


class _Run:
    """The state of one run while it goes."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        data: TokenData,
        budget: Budget,
        accelerator: Accelerator,
        sharing: int,
    ) -> None:
        self.config, self.directory, self.data = config, directory, data
        self.budget, self.accelerator = budget, accelerator
        environment.reset_peak_memory()
        torch.manual_seed(config.seed)
        model = Decoder(config.model)
        initialize(model, config.seed, config.model.init_std)
        transfer = config.transfer.build(hidden_size=config.model.hidden_size)
        transfer.initialize(model)
        objective = Objective(model, config.loss.build(model=model), config.training.precision)
        objective.to(accelerator.device)
        device = accelerator.device.type
        self.compiled = repays(config, device=device, sharing=sharing)
        if self.compiled:
            compile_layers(model)
        optimizer = build_optimizer(config.optimizer, model, transfer)
        self.module, self.optimizer = accelerator.prepare(objective, optimizer)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.first_batch = config.start.build(seed=config.seed)(self.module, self.optimizer.optimizer)
        self.objective: Objective = accelerator.unwrap_model(self.module)
        model = self.objective.model
        self.constraint = config.constraint.build(model=model)
        self.gradient = config.gradient.build(seed=config.seed, model=model)
        self.step = 0
        self.selection = config.selection.build(
            model=model,
            optimizer=self.optimizer.optimizer,
            seed=config.seed,
            calibration=lambda: self._batch()[:, :-1],
        )
        self.parts: dict[str, checkpoint.Part] = {"gradient": self.gradient, "selection": self.selection}
        self.averaging = Averaging(config.average.build(), directory.averaging_path)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.schedule = config.schedule.build()
        self.recorder = _recorder(config, data)
        self.seconds = 0.0
        self.rows: list[dict[str, Any]] = []
        self.diverged_at: int | None = None
        self._restore()

    def _restore(self) -> None:
        """Go on from the checkpoint, if there is one; forget what was logged after it."""
        path = self.directory.checkpoint_path
        state = checkpoint.load(path, self.module, self.optimizer.optimizer, parts=self.parts)
        if state is not None:
            self.step, self.seconds = state.step, state.seconds
        if self.accelerator.is_main_process:
            self.directory.cut_metrics(state.metrics_size if state is not None else 0)

    def go(self, bar: ProgressBar, stopped: Stop) -> Summary:
        evaluations = self.config.training.evaluations
        saved = time.monotonic()
        self.module.train()
        reached = self._progress() if self.step else 0.0
        while self.diverged_at is None and self._spent() < 1:
            before = self._spent()
            self._train_step()
            since, reached = reached, self._progress()
            over = self._spent() >= 1
            if self.recorder is not None and (over or self.step % self.config.training.diagnostics_every == 0):
                self._flush(bar)
                self._record()
            if over or len(self.rows) >= LOGGED_TOGETHER:
                self._flush(bar)
            kept = not over and _between(since, reached, self.config.training.keep)
            if kept or (not over and int(before * evaluations) < int(self._spent() * evaluations)):
                self._flush(bar)
                self._evaluate(share=1 if kept else 1 / 8)
            if self.diverged_at is None and _between(since, reached, self.config.training.keep):
                self._save(self.directory.checkpoints_path / f"{self.step:06d}")
            if self.diverged_at is None and _between(since, reached, self.averaging.points):
                self.averaging.keep(self.module, self.step, write=self.accelerator.is_main_process)
            due = time.monotonic() - saved >= self.config.training.checkpoint_seconds
            if not over and self._agree(due or stopped.is_set()):
                self._flush(bar)
                if self.diverged_at is None:
                    self._save()
                    saved = time.monotonic()
                if self._agree(stopped.is_set()):
                    raise Interrupted(self._how_to_go_on())
        if self.diverged_at is not None:
            return self._summary(None)
        self.accelerator.wait_for_everyone()
        self.averaging.finish(self.module)
        self._save()
        return self._summary(self._evaluate(share=1.0))

    def _progress(self) -> float:
        """Where the schedule is asked for the next step's rate."""
        return self.budget.progress(self.step, self.seconds)

    def _spent(self) -> float:
        return self.budget.spent(self.step, self.seconds)

    def _train_step(self) -> None:
        start = time.perf_counter()
        config, optimizer = self.config, self.optimizer.optimizer
        progress = self._progress()
        factor = self.schedule(progress)
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.selection(self.step)
        self.objective.begin_step(self.step, progress)
        loss, norm = self._backward(self._batch())
        self.gradient([p for p in self.module.parameters() if p.grad is not None], self.step)
        optimizer.step()
        self.constraint(self.step + 1, self.rates[0] * factor)
        optimizer.zero_grad(set_to_none=True)
        if self.accelerator.device.type != "cpu" and config.training.seconds is not None:
            torch.accelerator.synchronize()
        self.step += 1
        self.seconds += time.perf_counter() - start
        self.rows.append(self._row(lr=self.rates[0] * factor, loss=loss, grad_norm=norm))

    def _batch(self) -> Tensor:
        """This process's rows of the step's global batch; the step's random numbers start here."""
        config, accelerator = self.config, self.accelerator
        on_cpu = accelerator.device.type == "cpu"
        reseed = torch.default_generator.manual_seed if on_cpu else torch.manual_seed
        number = self.first_batch + self.step
        reseed((config.seed * 1_000_003 + number) * 1009 + accelerator.process_index)
        rows = self.data.batch(
            number,
            seed=config.seed,
            batch_size=config.data.batch_size,
            sequence_length=config.data.sequence_length,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        return rows.to(accelerator.device, non_blocking=True)

    def _backward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of the mean loss over the rows, in micro-batches if so configured, then clipped."""
        training, accelerator = self.config.training, self.accelerator
        size = training.micro_batch_size or len(rows)
        micro_batches = rows.split(size)
        total = torch.zeros((), device=rows.device)
        for index, micro in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.module):
                loss = self.module(micro[:, :-1], micro[:, 1:]) * (len(micro) / len(rows))
                accelerator.backward(loss)
            total += loss.detach()
        norm = None
        if training.grad_clip is not None:
            norm = accelerator.clip_grad_norm_(self.module.parameters(), training.grad_clip)
        return total, norm

    def _flush(self, bar: ProgressBar) -> None:
        """Write the rows that wait, with their numbers fetched from the device at once."""
        if not self.rows:
            return
        start = time.perf_counter()
        losses = torch.stack([row["loss"] for row in self.rows])
        losses = self.accelerator.reduce(losses, reduction="mean").tolist()
        self.seconds += time.perf_counter() - start
        for row, loss in zip(self.rows, losses, strict=True):
            norm = row.pop("grad_norm")
            row["loss"] = loss if math.isfinite(loss) else None
            if norm is not None and math.isfinite(norm := float(norm)):
                row["grad_norm"] = norm
            if not math.isfinite(loss) and self.diverged_at is None:
                self.diverged_at = row["step"]
        if self.accelerator.is_main_process:
            self.directory.append(self.rows)
            logged = {"loss": losses[-1], "lr": self.rows[-1]["lr"]}
            if self.config.training.trackers:
                self.accelerator.log(logged, step=self.step)
        bar.update(
            self._spent(),
            loss=losses[-1],
            tokens_per_second=self.step * self.config.tokens_per_step / self.seconds,
        )
        self.rows = []

    def _record(self) -> None:
        """Log what the diagnostics measure; it takes no time of the run's own."""
        if self.recorder is not None and self.diverged_at is None and self.accelerator.is_main_process:
            with as_written(self.compiled):
                found = self.recorder(self.accelerator.unwrap_model(self.module).model)
            values = {name: value if math.isfinite(value) else None for name, value in found.items()}
            self.directory.append([self._row(diagnostics=values)])
            if self.config.training.trackers:
                self.accelerator.log({k: v for k, v in values.items() if v is not None}, step=self.step)

    def _row(self, **values: Any) -> dict[str, Any]:
        tokens = self.step * self.config.tokens_per_step
        return {"step": self.step, "tokens": tokens, "seconds": round(self.seconds, 4), **values}

    def _evaluate(self, *, share: float) -> float | None:
        with as_written(self.compiled):
            found = evaluate(self.module, self.data, self.config, self.accelerator, share=share)
        value = sum(found.values()) / len(found)
        if not math.isfinite(value):
            self.diverged_at = self.step
            return None
        if self.accelerator.is_main_process:
            domains = {"domains": found} if len(found) > 1 else {}
            self.directory.append([self._row(bits_per_byte=value, **domains)])
            if self.config.training.trackers:
                self.accelerator.log({"bits_per_byte": value}, step=self.step)
        return value

    def _save(self, path: Path | None = None) -> None:
        """Write the checkpoint from which the run goes on, or one that is kept at ``path``."""
        main = self.accelerator.is_main_process
        state = checkpoint.State(
            step=self.step,
            seconds=self.seconds,
            metrics_size=self.directory.append([]) if main else 0,
        )
        path = path or self.directory.checkpoint_path
        checkpoint.save(path, self.module, self.optimizer.optimizer, state, parts=self.parts, write=main)

    def _agree(self, wish: bool) -> bool:
        """Whether any process wishes so; all get the same answer."""
        if self.accelerator.num_processes == 1:
            return wish
        votes = torch.tensor(int(wish), device=self.accelerator.device)
        return bool(self.accelerator.reduce(votes, reduction="sum").item())

    def _how_to_go_on(self) -> str:
        return (
            f"stopped after step {self.step}, everything is saved in {str(self.directory.path)!r}; "
            "the same command with --resume goes on"
        )

    def _summary(self, value: float | None) -> Summary:
        config = self.config
        tokens = self.step * config.tokens_per_step
        return Summary(
            id=config.run_id(self.data.fingerprint),
            seed=config.seed,
            status="complete" if self.diverged_at is None else "diverged",
            bits_per_byte=value,
            diverged_at=self.diverged_at,
            steps=self.step,
            tokens=tokens,
            flops=self.step * self.budget.flops_per_step,
            seconds=self.seconds,
            tokens_per_second=tokens / self.seconds if self.seconds else 0.0,
            peak_memory=environment.peak_memory(),
            parameters=self.parameters,
            compiled=self.compiled,
            data={
                "fingerprint": self.data.fingerprint,
                "train_tokens": len(self.data.train),
                "eval_bytes": self.data.eval_bytes,
            },
            environment={"hardware": environment.hardware(), "versions": environment.versions()},
        )


def _between(since: float, reached: float, points: Sequence[float]) -> bool:
    """Whether one of these shares of the budget lies between the rates of two steps: the last and the next."""
    return any(since < point <= reached for point in points)


def _recorder(config: RunConfig, data: TokenData) -> Callable[[Decoder], dict[str, float]] | None:
    """What measures the configured diagnostics; it is imported only then, because it imports transformers' models."""
    if not config.training.diagnostics:
        return None
    from assay.training.recording import Recorder

    return Recorder(config.training.diagnostics, data, config.data.sequence_length)


@contextmanager
def _interruptions(stop: Stop | None) -> Iterator[Stop]:
    """``stop`` if it is given, else what Ctrl-C sets, so that no step is cut in two; a second one stops at once."""
    pressed = threading.Event()
    if stop is not None or threading.current_thread() is not threading.main_thread():
        yield stop or pressed
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)
