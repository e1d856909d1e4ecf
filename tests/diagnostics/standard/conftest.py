"""One diagnostic of one model; what is seen of attention made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from assay.diagnostics import Result, diagnostics
from assay.diagnostics.events import Attention
from assay.diagnostics.observing import observe
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows


@pytest.fixture
def measure(windows: Windows) -> Callable[..., Result]:
    """What a diagnostic finds of a model of transformers on random tokens."""

    def run(name: str, model: Any) -> Result:
        diagnostic = diagnostics.build(name, subject=Subject(model))
        observe(diagnostic.subject, windows, [diagnostic])
        diagnostic.work(windows)
        result = diagnostic.result()
        assert result is not None
        return result

    return run


@pytest.fixture
def attention() -> Callable[..., Attention]:
    """An event of one text, two heads and four tokens; what is not given is zero."""

    def make(layer: int = 0, domain: str = "", **given: Any) -> Attention:
        shapes = {
            "largest_logit": (1, 2),
            "entropy": (1, 2, 4),
            "received": (1, 2, 4),
            "value_norm": (1, 2, 4),
            "output": (1, 2, 4, 3),
        }
        fields = {name: torch.as_tensor(given.get(name, 0.0)).expand(shape) for name, shape in shapes.items()}
        return Attention(layer, domain, **fields)

    return make
