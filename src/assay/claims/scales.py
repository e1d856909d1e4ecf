"""Scales: the settings under which claims are measured where their records do not say otherwise.

``cpu`` is minutes on two cores, ``gpu`` is minutes on one large GPU (the loss comparisons: GPT of 124M parameters).
Every arm, the baseline too, gets the same search for its learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assay.catalog.evidence import Scale

_ARMS: dict[Scale, dict[str, Any]] = {
    "cpu": {
        "tokens": 250_000,
        "seeds": 5,
        "run": {
            "model": {"hidden_size": 128},
            "data": {"sequence_length": 128, "batch_size": 4},
        },
    },
    "gpu": {
        "tokens": 50_000_000,
        "seeds": 3,
        "run": {
            "model": {"depth": 12, "hidden_size": 768, "num_heads": 12},
            "data": {"sequence_length": 1024, "batch_size": 32},
            "training": {"precision": "bfloat16"},
        },
    },
}

DEFAULTS: Mapping[Scale, Mapping[str, Mapping[str, Any]]] = {
    scale: {"compare": {**arms, "tune": {"lr": [0.5, 1, 2]}}, "property": arms} for scale, arms in _ARMS.items()
}
"""Options by scale and way."""
