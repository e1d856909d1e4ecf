"""The directory of a run.

config.json      the whole configuration, written first
metrics.jsonl    one line per logged step and per evaluation, only ever appended to
checkpoint/      the last good state, replaced as a whole
checkpoints/     STEP/: the states that ``training.keep`` asks for
summary.json     how the run ended, written last: a run that has one is over
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from assay.config import flatten
from assay.errors import UserError
from assay.files import disk_errors, write_json
from assay.training.config import EXECUTION, RunConfig


class Summary(BaseModel):
    """How a run ended."""

    id: str
    seed: int
    status: Literal["complete", "diverged"]
    bits_per_byte: float | None
    """Of the whole validation text, after the last step; None if the run diverged."""
    diverged_at: int | None = None
    steps: int
    tokens: int
    flops: float
    seconds: float
    """Of training steps alone."""
    tokens_per_second: float
    peak_memory: int
    """Bytes: of the device's allocator on a GPU, of the process otherwise."""
    parameters: int
    compiled: bool
    data: dict[str, Any]
    environment: dict[str, Any]


class RunDirectory:
    """Reading and writing the files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.checkpoint_path = self.path / "checkpoint"
        self.checkpoints_path = self.path / "checkpoints"
        self.averaging_path = self.path / "averaging"
        self.summary_path = self.path / "summary.json"

    def open(self, config: RunConfig, *, resume: bool) -> None:
        """Create the directory, or check that it may be gone on with.

        Raises ``UserError`` if the path is a file, holds something else, or holds a run that is not to be resumed
        or that has another configuration.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{str(self.path)!r} is a file; a run needs a directory")
        if self.config_path.exists():
            if not resume:
                raise UserError(
                    f"{str(self.path)!r} already holds a run; --resume goes on with it, another --out starts anew"
                )
            self._check_same(config)
            return
        strangers = [e.name for e in self.path.iterdir() if not e.name.startswith(".")] if self.path.exists() else []
        if strangers:
            raise UserError(f"{str(self.path)!r} is not empty and holds no run (it has {strangers[0]!r})")
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config_path, config.dump())

    def config(self) -> RunConfig:
        return RunConfig.parse(_read_json(self.config_path))

    def as_begun(self, config: RunConfig) -> RunConfig:
        """``config``, compiled or not as the run was begun, because that decides the last bits of its numbers."""
        begun = self.config().training.compile
        return config.model_copy(update={"training": config.training.model_copy(update={"compile": begun})})

    def summary(self) -> Summary | None:
        """None while the run is not over."""
        if not self.summary_path.exists():
            return None
        try:
            return Summary.model_validate(_read_json(self.summary_path))
        except ValidationError:
            raise UserError(f"{self.summary_path} is damaged; delete it and resume the run") from None

    def finish(self, summary: Summary) -> None:
        write_json(self.summary_path, summary.model_dump(mode="json"))

    def append(self, rows: Iterable[dict[str, Any]]) -> int:
        """Add lines to the metrics, and return the file's size after them."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with disk_errors(self.metrics_path), self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            return file.tell()

    def cut_metrics(self, size: int) -> None:
        """Forget what was logged after the state that is resumed. Raises ``UserError`` if lines are missing."""
        self.metrics_path.touch()
        present = self.metrics_path.stat().st_size
        if present < size:
            raise UserError(
                f"{self.metrics_path} is damaged: {present} bytes, but the checkpoint was written after {size}; "
                "delete the run's directory and start it again"
            )
        with disk_errors(self.metrics_path), self.metrics_path.open("r+b") as file:
            file.truncate(size)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The logged rows. A last line without its end is one being written, and left out.

        Raises ``UserError`` naming the line if the file is damaged.
        """
        if not self.metrics_path.exists():
            return
        lines = self.metrics_path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(
                    f"{self.metrics_path} is damaged at line {number}; delete the run's directory and run it again"
                )
            yield row

    def _check_same(self, config: RunConfig) -> None:
        old, new = flatten(_read_json(self.config_path)), flatten(config.dump())
        ignored = {f"training.{field}" for field in EXECUTION}
        for field in sorted((old.keys() | new.keys()) - ignored):
            if old.get(field) != new.get(field):
                raise UserError(
                    f"{str(self.path)!r} holds a run with {field}={old.get(field)!r}, not {new.get(field)!r}; "
                    "resume it with its own configuration, or choose another --out"
                )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path} is damaged: it is not JSON; delete the run's directory and start again") from None
