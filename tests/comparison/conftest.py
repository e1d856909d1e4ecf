from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def tiny(corpus: Path) -> dict[str, Any]:
    """Arguments of a comparison whose runs take a fraction of a second."""
    return {
        "arms": ["baseline", "seednorm"],
        "seeds": 2,
        "tokens": 12 * 4 * 32,
        "jobs": 1,
        "values": {
            "model.depth": 2,
            "model.hidden_size": 32,
            "model.num_heads": 2,
            "data.corpus": f"text:{corpus}",
            "data.sequence_length": 32,
            "data.batch_size": 4,
            "data.eval_bytes": 2048,
            "training.evaluations": 2,
        },
    }
