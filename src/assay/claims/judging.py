"""From measured values to a verdict, by the rule that the record states. Pure functions of numbers.

    expect = { "seednorm - baseline" = "< 0", "seednorm.growth / baseline.growth" = "< 0.5" }

The left side names measured quantities: one, the difference of two, or the ratio of two, paired by seed. The right
side is a region. With the 95 % interval of the left side over the seeds, the expectation is

    supported         if the whole interval lies in the region
    not supported     if the whole interval lies outside of it
    inconclusive      if it lies across its border, or if there is no interval

and a claim is supported if all its expectations are, not supported if any is not, inconclusive otherwise.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Self

from assay.catalog.evidence import Outcome, Verdict
from assay.comparison.statistics import paired_difference
from assay.errors import UserError

Values = Mapping[str, Mapping[int, float | None]]
"""Measured values by quantity and seed; ``None`` where a run diverged."""

_NUMBER = r"([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)"


@dataclasses.dataclass(frozen=True)
class Region:
    """An interval of numbers, with or without its ends."""

    text: str
    low: float = -math.inf
    high: float = math.inf
    closed: bool = True

    @classmethod
    def parse(cls, text: str) -> Self:
        """``"< 0"``, ``"<= 0"``, ``"> 1.2"``, ``">= 8"``, or ``"-0.02 .. 0.02"`` with both ends.

        Raises ``UserError`` for anything else.
        """
        if match := re.fullmatch(rf"(<=?|>=?)\s*{_NUMBER}", text.strip()):
            sign, number = match[1], float(match[2])
            ends = {"high": number} if sign[0] == "<" else {"low": number}
            return cls(text, **ends, closed=sign.endswith("="))
        if match := re.fullmatch(rf"{_NUMBER}\s*\.\.\s*{_NUMBER}", text.strip()):
            low, high = float(match[1]), float(match[2])
            if low <= high:
                return cls(text, low, high)
        raise UserError(f"{text!r} is no region; write for example '< 0', '>= 1.2' or '-0.02 .. 0.02'")

    def __contains__(self, x: float) -> bool:
        return self.low <= x <= self.high if self.closed else self.low < x < self.high

    def verdict(self, low: float, high: float) -> Verdict:
        """For an interval of which both ends belong to it."""
        if low in self and high in self:
            return "supported"
        apart = high < self.low or low > self.high
        touching = not self.closed and (high == self.low or low == self.high)
        return "not supported" if apart or touching else "inconclusive at this scale"


@dataclasses.dataclass(frozen=True)
class Quantity:
    """``left``, ``left - right`` or ``left / right`` over the seeds that both have."""

    left: str
    sign: str = ""
    right: str = ""

    @classmethod
    def parse(cls, text: str, known: Iterable[str]) -> Self:
        """Raises ``UserError`` for a name that was not measured."""
        known = list(known)
        if text in known:
            return cls(text)
        for sign in (" - ", " / "):
            left, found, right = text.partition(sign)
            if found and left in known and right in known:
                return cls(left, sign.strip(), right)
        raise UserError(
            f"{text!r} is no measured quantity, nor 'A - B' or 'A / B' of two; measured: {', '.join(known)}"
        )

    def by_seed(self, values: Values) -> dict[int, float]:
        """The quantity of each seed in which what it needs is finite."""
        left, right = values[self.left], values.get(self.right, {})
        if not self.sign:
            return {seed: x for seed, x in left.items() if x is not None}
        pairs = {seed: (left[seed], right[seed]) for seed in left.keys() & right.keys()}
        return {
            seed: x / y if self.sign == "/" else x - y
            for seed, (x, y) in sorted(pairs.items())
            if x is not None and y is not None
        }

    def outcome(self, values: Values, region: Region, *, exact: bool) -> Outcome:
        left = values[self.left]
        right = values[self.right] if self.sign else dict.fromkeys(left, 0.0)
        ratio = self.sign == "/"
        if ratio:
            left, right = _logarithms(self.left, left), _logarithms(self.right, right)
        paired = paired_difference(left, right)
        mean, low, high = paired.mean, paired.low, paired.high
        if mean is not None and low is None and (exact or paired.pairs > 1):
            low = high = mean
        ends = [math.exp(x) if ratio and x is not None else x for x in (mean, low, high)]
        lost = any(left[seed] is None and right[seed] is not None for seed in left.keys() & right.keys())
        verdict: Verdict = "inconclusive at this scale"
        if lost:
            verdict = "not supported"
        elif ends[1] is not None and ends[2] is not None:
            verdict = region.verdict(ends[1], ends[2])
        text = f"{self.left} {self.sign} {self.right}" if self.sign else self.left
        mean, low, high = ends
        return Outcome(
            quantity=text, region=region.text, mean=mean, low=low, high=high, pairs=paired.pairs, verdict=verdict
        )


def judge(values: Values, expect: Mapping[str, str], *, exact: bool = False) -> list[Outcome]:
    """The outcome of each expectation.

    Differences are means with Student's interval over the seeds; ratios are geometric means with the interval of
    the logarithm. Values that agree over all seeds, and single values of an ``exact`` measurement, are their own
    interval. A run on the left that diverged while its partner did not makes the expectation not supported.

    Raises ``UserError`` for an expectation that names what was not measured.
    """
    parsed = [(Quantity.parse(text, values), Region.parse(region)) for text, region in expect.items()]
    return [quantity.outcome(values, region, exact=exact) for quantity, region in parsed]


def overall(outcomes: Iterable[Outcome]) -> Verdict:
    """The claim's verdict from those of its expectations."""
    verdicts = {outcome.verdict for outcome in outcomes}
    if "not supported" in verdicts:
        return "not supported"
    return "supported" if verdicts == {"supported"} else "inconclusive at this scale"


def _logarithms(name: str, values: Mapping[int, float | None]) -> dict[int, float | None]:
    wrong = [value for value in values.values() if value is not None and value <= 0]
    if wrong:
        raise UserError(f"a ratio needs values above 0; {name!r} has {wrong[0]}")
    return {seed: None if value is None else math.log(value) for seed, value in values.items()}
