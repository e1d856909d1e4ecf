"""A diagnosis as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence

from assay.diagnostics.diagnosis import Diagnosis


def html(diagnoses: Sequence[Diagnosis]) -> str:
    return ""
