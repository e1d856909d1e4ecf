"""Numbers as a reader wants them. A missing number is an en dash; a minus is the sign, not a hyphen."""

from __future__ import annotations

import json
import math
from typing import Any

from assay.comparison.result import Comparison

MISSING = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def decimals(comparison: Comparison) -> int:
    """Decimal places that show the narrowest interval's half-width with two digits: 3 to 6, 4 without any."""
    compared = [arm.compared for arm in comparison.arms if arm.compared]
    widths = [(c.high - c.low) / 2 for c in compared if c.low is not None and c.high is not None]
    if not widths or min(widths) <= 0:
        return 4
    return min(6, max(3, 1 - math.floor(math.log10(min(widths)))))


def fixed(value: float | None, digits: int) -> str:
    """A value with that many decimals."""
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    """A difference: always with its sign."""
    return MISSING if value is None else f"{value:+.{digits}f}".replace("-", "−")


def at_least(value: float | None) -> str:
    """Two significant digits, rounded up, so that "this much or more" stays true."""
    if not value:
        return MISSING if value is None else "0"
    digits = 1 - math.floor(math.log10(value))
    rounded = math.ceil(round(value * 10**digits, 6)) / 10**digits
    return f"{rounded:.{max(0, digits)}f}"


def probability(p: float | None) -> str:
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(value: float | None) -> str:
    """1234567 as 1,234,567."""
    return MISSING if value is None else f"{value:,.0f}"


def scientific(value: float | None) -> str:
    """1.5e15 as 1.50 × 10¹⁵."""
    if value is None:
        return MISSING
    if value < 1e4:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def memory(size: float | None) -> str:
    """Bytes as MiB or GiB."""
    if size is None:
        return MISSING
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.2f} GiB"


def change(value: float | None, reference: float | None) -> str:
    """How far a value is from a reference, in percent; empty if less than half a percent."""
    if value is None or not reference:
        return ""
    percent = 100 * (value / reference - 1)
    return "" if abs(percent) < 0.5 else f"{percent:+,.0f} %".replace("-", "−")


def plain(value: Any, name: str = "") -> str:
    """A value of a configuration or a description; ``name`` says what it is, so that bytes read as such."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name == "memory":
        return memory(value)
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        return f"{value:,.10g}".replace("-", "−")
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        options = ", ".join(f"{key} = {plain(inner)}" for key, inner in value.items() if key != "name")
        return f"{value['name']} ({options})" if options else value["name"]
    if isinstance(value, list):
        return ", ".join(plain(inner) for inner in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def budget(values: dict[str, Any]) -> str:
    """``{"tokens": 250000}`` as "250,000 tokens"."""
    units = {
        "tokens": lambda amount: f"{count(amount)} tokens",
        "flops": lambda amount: f"{scientific(amount)} FLOPs",
        "seconds": duration,
    }
    parts = [
        units[name](value) if name in units and isinstance(value, int | float) else f"{name} {plain(value)}"
        for name, value in values.items()
    ]
    return ", ".join(parts) or "no limit"
