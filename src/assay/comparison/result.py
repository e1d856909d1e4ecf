"""The result of a comparison: what ``comparison.json`` holds and the reports read.

Everything a report says is in this file, so that a report can be made again, anywhere, without the runs.
The JSON is strict (RFC 8259): a number that is not finite is written as ``null``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

import pydantic
from pydantic import AwareDatetime, BeforeValidator, ConfigDict, Field, NonNegativeFloat, NonNegativeInt
from pydantic_core import PydanticSerializationError, to_jsonable_python

from assay.config import Config
from assay.errors import UserError
from assay.files import disk_errors, write_text

FORMAT = 1
FILE_NAME = "comparison.json"
MAX_TRAIN_POINTS = 200

Verdict = Literal[
    "better",
    "worse",
    "no difference shown",
    "diverged more",
    "diverged less",
    "one seed: no interval",
    "no finite pair",
]


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """Any value as JSON has it: tuples are lists, paths are strings, what is not finite is ``None``."""
    try:
        return json.loads(json.dumps(to_jsonable_python(value)), parse_constant=lambda _: None)
    except PydanticSerializationError:
        raise ValueError(f"{value!r} cannot be written as JSON") from None


Plain = Annotated[Any, BeforeValidator(_plain)]
PlainTable = Annotated[dict[str, Any], BeforeValidator(_plain)]


class Record(Config):
    """Base of the tables below: immutable, no unknown fields, finite numbers only."""

    model_config = ConfigDict(allow_inf_nan=False)


class Point(Record):
    """One measurement during a run, after ``step`` steps, ``tokens`` tokens and ``seconds`` of training.

    A ``value`` that is not finite becomes ``None``.
    """

    step: NonNegativeInt
    tokens: NonNegativeInt
    seconds: NonNegativeFloat
    value: Annotated[float | None, BeforeValidator(_finite_or_none)]


class RunResult(Record):
    """One run: ``value`` is the final validation metric, ``None`` exactly if the run diverged.

    ``curve`` holds the validation metric and ``train`` the training loss in nats over training, ``diagnostics`` what
    was recorded of each ``diagnostic.number``; ``seconds``
    is training time, ``peak_memory`` is in bytes, ``diverged_at`` is the step of the first loss that was not
    finite.
    """

    arm: str
    seed: int
    id: str
    status: Literal["complete", "diverged"]
    value: float | None
    curve: list[Point] = Field(default_factory=list)
    train: list[Point] = Field(default_factory=list, max_length=MAX_TRAIN_POINTS)
    diagnostics: dict[str, list[Point]] = Field(default_factory=dict)
    tokens: NonNegativeInt
    flops: NonNegativeFloat
    seconds: NonNegativeFloat
    tokens_per_second: NonNegativeFloat
    peak_memory: NonNegativeInt
    parameters: NonNegativeInt
    diverged_at: NonNegativeInt | None = None

    @pydantic.model_validator(mode="after")
    def _value_if_complete(self) -> Self:
        if (self.value is None) != (self.status == "diverged"):
            raise ValueError(f"a {self.status} run cannot have the value {self.value}")
        return self


class Difference(Record):
    """An arm against the baseline, paired by seed; ``statistics.py`` has the formulas.

    ``mean`` is arm minus baseline over the seeds in which both finished, ``low`` and ``high`` its confidence
    interval, ``relative`` the same in percent of the baseline's mean; ``p_adjusted`` is Holm's over the arms;
    ``detectable`` is the smallest absolute mean difference that this arm's pairs could have shown.
    ``divergence_p`` compares how often the two diverged, ``None`` if neither ever did.
    """

    pairs: NonNegativeInt
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    relative: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    detectable: float | None = None
    divergence_p: float | None = None
    divergence_p_adjusted: float | None = None
    verdict: Verdict


class Candidate(Record):
    """One setting that tuning tried: its values by dotted field, and its mean score (``None``: diverged)."""

    values: PlainTable
    score: Annotated[float | None, BeforeValidator(_finite_or_none)]


class Tuning(Record):
    """The search for one arm's settings, on ``seeds`` that the comparison itself does not use."""

    chosen: PlainTable
    candidates: list[Candidate]
    seeds: list[int]


class ArmResult(Record):
    """One arm: its runs, their summary, and its difference from the baseline (``None`` for the baseline).

    ``differences`` maps a dotted field of the configuration to (baseline's value, this arm's value).
    ``mean`` and ``standard_deviation`` are over the runs that finished. ``compare_arms`` fills in the last
    four fields.
    """

    name: str
    techniques: list[str] = Field(default_factory=list)
    differences: dict[str, tuple[Plain, Plain]] = Field(default_factory=dict)
    tuned: Tuning | None = None
    runs: list[RunResult]
    mean: float | None = None
    standard_deviation: float | None = None
    diverged: NonNegativeInt = 0
    compared: Difference | None = None

    @pydantic.model_validator(mode="after")
    def _one_run_per_seed(self) -> Self:
        seeds = [run.seed for run in self.runs]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"arm {self.name!r} has two runs with one seed: {sorted(seeds)}")
        if any(run.arm != self.name for run in self.runs):
            raise ValueError(f"arm {self.name!r} holds a run of another arm")
        return self


class Comparison(Record):
    """Arms × seeds under one budget, and the statistics on them. The first arm is the baseline.

    ``budget``, ``data``, ``hardware`` and ``versions`` are tables that reports show as they are; ``seconds``
    is the wall-clock time of the whole comparison.
    """

    format: Literal[1] = 1
    title: str
    metric: str = "bits_per_byte"
    lower_is_better: bool = True
    unit: str = "bits per byte"
    alpha: float = Field(0.05, gt=0, lt=1)
    budget: PlainTable
    seeds: list[int]
    arms: list[ArmResult] = Field(min_length=1)
    data: PlainTable = Field(default_factory=dict)
    hardware: PlainTable = Field(default_factory=dict)
    versions: PlainTable = Field(default_factory=dict)
    created: AwareDatetime
    seconds: NonNegativeFloat
    command: str | None = None

    @pydantic.model_validator(mode="after")
    def _baseline_first(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"two arms have one name: {', '.join(names)}")
        if self.arms[0].compared is not None:
            raise ValueError(f"the first arm, {names[0]!r}, is the baseline and cannot be compared with itself")
        return self

    @property
    def baseline(self) -> ArmResult:
        return self.arms[0]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read ``path``, or ``comparison.json`` in the directory ``path``.

        Raises ``UserError`` if it is missing, cannot be read, or was written in another format.
        """
        path = Path(path)
        if path.is_dir():
            path = path / FILE_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_reject_constant)
        except FileNotFoundError:
            raise UserError(f"no comparison at {str(path)!r}: 'assay compare' writes one") from None
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"{str(path)!r} is damaged: not valid JSON ({error})") from None
        found = data.get("format") if isinstance(data, dict) else None
        if not isinstance(found, int):
            raise UserError(f"{str(path)!r} is not a comparison: it has no 'format' number")
        if found != FORMAT:
            remedy = "a newer assay reads it" if found > FORMAT else f"the first format was {FORMAT}"
            raise UserError(f"{str(path)!r} has format {found}, this assay reads {FORMAT}: {remedy}")
        try:
            return cls.model_validate(data)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            reason = first["msg"].removeprefix("Value error, ")
            raise UserError(f"{str(path)!r} is damaged: {f'{where}: ' if where else ''}{reason}") from None

    def save(self, path: str | Path) -> Path:
        """Write strict JSON to ``path``, or to ``comparison.json`` in the directory ``path``, at once.

        Raises ``AssayError`` if the disk refuses.
        """
        path = Path(path)
        if path.is_dir():
            path = path / FILE_NAME
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.model_dump_json() + "\n")
        return path


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def thin(points: Sequence[Point], limit: int = MAX_TRAIN_POINTS) -> list[Point]:
    """At most ``limit`` points: means over groups of k = ⌈n / limit⌉ consecutive points.

    A group stands at its last point's step, tokens and seconds; values that are not finite do not count
    towards its mean, which is ``None`` if none is finite.
    """
    size = math.ceil(len(points) / limit) or 1
    thinned = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        values = [point.value for point in group if point.value is not None]
        mean = math.fsum(values) / len(values) if values else None
        thinned.append(group[-1].model_copy(update={"value": mean}))
    return thinned
