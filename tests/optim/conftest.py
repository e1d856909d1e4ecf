from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def tiny(corpus: Path) -> dict[str, Any]:
    """A run of 12 steps that takes a fraction of a second."""
    return {
        "model": {"depth": 1, "hidden_size": 16, "num_heads": 1},
        "data": {"corpus": f"text:{corpus}", "sequence_length": 32, "batch_size": 4, "eval_bytes": 2048},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "training": {"tokens": 12 * 4 * 32, "evaluations": 1, "compile": False},
    }
