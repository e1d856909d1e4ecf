"""A diagnosis: what was measured of one model, and the findings, worst first."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay.catalog.evidence import Standing, standing
from assay.catalog.records import Paper, papers
from assay.catalog.techniques import commands
from assay.diagnostics import Finding, Result
from assay.errors import UserError
from assay.files import disk_errors, write_json

NAME = "findings.json"


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What was measured of one model.

    Attributes:
        model: where it came from.
        about: its class, layers, parameters, and the text it was run on.
        results: by diagnostic.
        skipped: why a diagnostic measured nothing, by its name.
    """

    model: str
    about: Mapping[str, Any]
    results: Mapping[str, Result]
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """Of all diagnostics, worst first: those that pass their threshold by the largest factor."""
        return sorted((f for result in self.results.values() for f in result.findings), key=lambda f: -f.excess)

    def scalars(self) -> dict[str, float]:
        """``diagnostic.name``: value."""
        return {f"{name}.{key}": x for name, result in self.results.items() for key, x in result.scalars.items()}

    def document(self) -> dict[str, Any]:
        """What ``findings.json`` holds; numbers that are not finite are null."""
        return finite(
            {
                "model": self.model,
                "about": dict(self.about),
                "findings": [describe(finding) for finding in self.findings],
                "measurements": {
                    name: {"scalars": dict(result.scalars), "arrays": dict(result.arrays)}
                    for name, result in self.results.items()
                },
                "skipped": dict(self.skipped),
            }
        )

    def save(self, folder: str | Path) -> Path:
        """Write ``findings.json``. Raises ``AssayError`` if the disk refuses."""
        path = Path(folder) / NAME
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.document())
        return path


def describe(finding: Finding) -> dict[str, Any]:
    """A finding with the techniques that treat it and the commands that try them."""
    found = dataclasses.asdict(finding)
    found["where"] = [dict(place) for place in finding.where]
    found["techniques"] = [
        {
            "name": treatment.paper.slug,
            "command": treatment.command,
            "claims": dataclasses.asdict(treatment.standing),
        }
        for treatment in treatments(finding)
    ]
    return found


@dataclasses.dataclass(frozen=True)
class Treatment:
    """A technique that treats a finding, the command that tries it, and how its claims fared where we measured them.

    The command is the comparison with the baseline, or applies a transform.
    """

    paper: Paper
    command: str
    standing: Standing


def treatments(finding: Finding) -> list[Treatment]:
    """The techniques of the catalogue that treat the symptom and change a training or a model.

    First are those whose claims held best.
    """
    found = [
        Treatment(paper, commands(paper)[-1], standing(*(claim.id for claim in paper.claims)))
        for paper in papers()
        if finding.symptom in paper.treats and (paper.patch is not None or paper.transform is not None)
    ]
    return sorted(found, key=lambda treatment: (-treatment.standing.rank, treatment.paper.slug))


def check_folder(out: str | Path) -> None:
    """Raises ``UserError`` for a folder that holds something else than a diagnosis."""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(out)!r} is a file; give a folder for findings.json and report.html")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / NAME).is_file():
        raise UserError(f"{str(out)!r} is not empty and holds no {NAME}; give another folder")


def finite(value: Any) -> Any:
    """The same with null for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_document(folder: str | Path) -> dict[str, Any]:
    """``findings.json`` of a folder. Raises ``UserError`` if there is none."""
    path = Path(folder) / NAME
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{str(folder)!r} holds no {NAME} that can be read") from None
    return found
