from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from assay.training.config import RunConfig


@pytest.fixture
def tiny(corpus: Path) -> dict[str, Any]:
    """A run of 12 steps that takes a fraction of a second."""
    return {
        "model": {"depth": 2, "hidden_size": 32, "num_heads": 2},
        "data": {"corpus": f"text:{corpus}", "sequence_length": 32, "batch_size": 4, "eval_bytes": 2048},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "training": {"tokens": 12 * 4 * 32, "evaluations": 3, "compile": False},
    }


@pytest.fixture
def tiny_config(tiny: dict[str, Any]) -> RunConfig:
    return RunConfig.parse(tiny)
