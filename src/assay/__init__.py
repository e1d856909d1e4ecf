"""assay: diagnose neural networks, apply published techniques by name, compare them fairly.

    assay.compare(arms=["baseline", "seednorm"], seeds=3, tokens="250k", out="comparison")
    assay.train({"model": {"norm": "seednorm"}}, out="run")
    assay.diagnose("run").findings
    model = assay.load("run")
    assay.apply("layernorm-removal", "run", out="model")

Importing this package is cheap: torch and transformers are loaded when a function first needs them. Once it is
imported, ``transformers.AutoModelForCausalLM`` opens what assay saves.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from assay import _transformers_hook

if TYPE_CHECKING:
    from assay.catalog import Paper as Paper
    from assay.catalog import paper as paper
    from assay.catalog import papers as papers
    from assay.catalog.evidence import evidence as evidence
    from assay.catalog.search import search as search
    from assay.catalog.techniques import technique as technique
    from assay.catalog.techniques import techniques as techniques
    from assay.claims.measure import measure as measure
    from assay.comparison.compare import compare as compare
    from assay.comparison.result import Comparison as Comparison
    from assay.comparison.spec import ComparisonSpec as ComparisonSpec
    from assay.diagnostics.diagnosis import Diagnosis as Diagnosis
    from assay.errors import AssayError as AssayError
    from assay.errors import UserError as UserError
    from assay.models import Decoder as Decoder
    from assay.models import ModelConfig as ModelConfig
    from assay.models.hugging_face.saving import save as save
    from assay.reports import write_reports as write_reports
    from assay.reports.diagnosis import write_diagnosis as write_diagnosis
    from assay.training.apply import Applied as Applied
    from assay.training.apply import apply as apply
    from assay.training.config import RunConfig as RunConfig
    from assay.training.diagnose import diagnose as diagnose
    from assay.training.export import export as export
    from assay.training.export import load as load
    from assay.training.export import open_model as open_model
    from assay.training.loop import train as train
    from assay.version import __version__ as __version__

_HOMES = {
    "Applied": "assay.training.apply",
    "AssayError": "assay.errors",
    "Comparison": "assay.comparison.result",
    "ComparisonSpec": "assay.comparison.spec",
    "Decoder": "assay.models",
    "Diagnosis": "assay.diagnostics.diagnosis",
    "ModelConfig": "assay.models",
    "Paper": "assay.catalog",
    "RunConfig": "assay.training.config",
    "UserError": "assay.errors",
    "__version__": "assay.version",
    "apply": "assay.training.apply",
    "compare": "assay.comparison.compare",
    "diagnose": "assay.training.diagnose",
    "evidence": "assay.catalog.evidence",
    "export": "assay.training.export",
    "load": "assay.training.export",
    "measure": "assay.claims.measure",
    "open_model": "assay.training.export",
    "paper": "assay.catalog",
    "papers": "assay.catalog",
    "save": "assay.models.hugging_face.saving",
    "search": "assay.catalog.search",
    "technique": "assay.catalog.techniques",
    "techniques": "assay.catalog.techniques",
    "train": "assay.training.loop",
    "write_diagnosis": "assay.reports.diagnosis",
    "write_reports": "assay.reports",
}
"""Where each public name is defined; it is imported when it is first asked for."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'assay' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


_transformers_hook.install()
