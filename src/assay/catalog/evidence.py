"""Evidence: what was measured for a claim, in ``evidence/ID.json``, which ``assay claims run`` alone writes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AwareDatetime, BeforeValidator

from assay.config import Config
from assay.errors import AssayError, UserError
from assay.files import disk_errors, write_json

Verdict = Literal["supported", "not supported", "inconclusive at this scale"]
Scale = Literal["cpu", "gpu"]

_Finite = Annotated[
    float | None, BeforeValidator(lambda x: None if isinstance(x, float) and not math.isfinite(x) else x)
]


class Outcome(Config):
    """One expectation: the quantity's mean and 95 % interval over ``pairs`` seeds, and how it lies to the region."""

    quantity: str
    region: str
    mean: _Finite
    low: _Finite
    high: _Finite
    pairs: int
    verdict: Verdict


class Measurement(Config):
    """A claim at one scale.

    ``values`` are by quantity and seed (``None``: diverged), from which ``outcomes`` and ``verdict`` follow by the
    rule in ``measure``, the record's own table with the scale's settings. ``details`` are for readers and plots.
    """

    verdict: Verdict
    outcomes: list[Outcome]
    values: dict[str, dict[int, _Finite]]
    measure: dict[str, Any]
    exact: bool
    budget: dict[str, Any]
    details: dict[str, Any]
    hardware: dict[str, Any]
    versions: dict[str, Any]
    commit: str | None
    created: AwareDatetime
    seconds: float


class Evidence(Config):
    """All measurements of one claim, by scale."""

    format: Literal[1] = 1
    id: str
    scales: dict[Scale, Measurement]

    @classmethod
    def load(cls, folder: Path, claim: str) -> Evidence | None:
        """``None`` if there is none. Raises ``AssayError`` naming the file if it is damaged."""
        path = evidence_path(folder, claim)
        if not path.exists():
            return None
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, pydantic.ValidationError) as error:
            raise AssayError(f"{str(path)!r} is no evidence: {' '.join(str(error).split())[:200]}") from None

    def save(self, folder: Path) -> Path:
        """Write the file whole. Raises ``AssayError`` if the disk refuses."""
        path = evidence_path(folder, self.id)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.model_dump(mode="json"))
        return path


def evidence_path(folder: Path, claim: str) -> Path:
    return folder / f"{claim}.json"


def with_measurement(folder: Path, claim: str, scale: Scale, measurement: Measurement) -> Path:
    """Save a measurement beside those of other scales."""
    kept: Mapping[Scale, Measurement] = {}
    if (old := Evidence.load(folder, claim)) is not None:
        kept = old.scales
    return Evidence(id=claim, scales={**kept, scale: measurement}).save(folder)


@cache
def shipped_folder() -> Path:
    """Where the evidence that comes with assay is: in the installed package, or in the checkout."""
    package = Path(__file__).parents[1] / "evidence"
    return package if package.exists() else Path(__file__).parents[3] / "evidence"


def evidence(claim: str, folder: str | Path | None = None) -> Evidence | None:
    """What was measured for a claim, ``None`` if nothing was. Raises ``UserError`` if ``folder`` does not exist."""
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"no folder of evidence at {str(folder)!r}: 'assay claims run' writes one")
    return Evidence.load(Path(folder) if folder is not None else shipped_folder(), claim)


@dataclasses.dataclass(frozen=True)
class Standing:
    """How many claims were measured, at any scale, and how many of them all measurements support."""

    measured: int
    supported: int

    @property
    def rank(self) -> float:
        """The share that is supported, as if one claim more had been and one had not."""
        return (self.supported + 1) / (self.measured + 2)

    def __str__(self) -> str:
        """``2 of 3 claims held``, of those that were measured."""
        if not self.measured:
            return "no claim measured here yet"
        return f"{self.supported} of {self.measured} claim{'s' * (self.measured != 1)} held"


@cache
def standing(*claims: str) -> Standing:
    """By the evidence that comes with assay."""
    found = [measured.scales.values() for claim in claims if (measured := evidence(claim)) is not None]
    supported = [all(measurement.verdict == "supported" for measurement in scales) for scales in found]
    return Standing(len(supported), sum(supported))
