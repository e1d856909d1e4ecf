"""Numbers as people write them: ``250k`` tokens, ``1.5e15`` FLOPs, ``10min``."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from assay.errors import UserError

_MULTIPLES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18}
_TIMES = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def quantity(value: Any) -> Any:
    """``"250k"`` as 250000.0; numbers pass. Raises ``UserError`` for what is not a quantity."""
    return _parse(value, _MULTIPLES, "a number such as 250000, 250k or 1.5M")


def duration(value: Any) -> Any:
    """``"10min"`` as 600.0 seconds; numbers pass. Raises ``UserError`` for what is not a duration."""
    return _parse(value, {"": 1.0, **_TIMES}, "a time such as 90, 90s, 10min or 2h")


def _parse(value: Any, units: dict[str, float], wanted: str) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([+-]?\d+(?:_\d+)*(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([a-zA-Z]*)\s*", value)
    if match is None or match[2].lower() not in units:
        raise UserError(f"{value!r} is not {wanted}")
    return float(match[1].replace("_", "")) * units[match[2].lower()]


def short(value: float) -> str:
    """1234567 as ``1.23M``: three significant digits.

    >>> short(250_000)
    '250k'
    """
    value = float(f"{value:.3g}")
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _whole(value: Any) -> Any:
    number = quantity(value)
    return int(number) if isinstance(number, float) and number.is_integer() else number


Count = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
Amount = Annotated[float, BeforeValidator(quantity), Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, BeforeValidator(duration), Field(gt=0, allow_inf_nan=False)]
