"""Text of two kinds that every Python has, and runs that are evaluated on several kinds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from assay.training.loop import train
from assay.training.run_directory import RunDirectory


def manual() -> list[str]:
    """The chapters of Python's built-in help, 465 kB of English, in the order of their names."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def write_documents(path: Path, texts: Iterable[str]) -> str:
    """Write one document a line, and return the corpus."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return f"text:{path}"


def mixture(shares: Mapping[str, float]) -> dict[str, Any]:
    """The table of a corpus that takes these shares of these corpora."""
    return {"name": "mixture", "corpora": list(shares), "shares": list(shares.values())}


def final_domains(out: Path, table: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, float]:
    """Train a run of a mixture; bits per byte of each corpus' validation text at the end, NaN if it diverged."""
    summary = train(table, out=out, values=values)
    if summary.status == "diverged":
        return dict.fromkeys(table["data"]["corpus"]["corpora"], float("nan"))
    return [row["domains"] for row in RunDirectory(out).metrics() if "domains" in row][-1]
