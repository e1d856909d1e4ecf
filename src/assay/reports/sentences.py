"""What a comparison found, in plain words: the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence

from assay.comparison.result import ArmResult, Comparison, Difference, Verdict
from assay.reports.numbers import at_least, decimals, fixed, probability, signed


def headline(comparison: Comparison) -> str:
    """One sentence for the whole comparison, grouped by verdict, best news first."""
    baseline, *others = comparison.arms
    if not others:
        return f"Only {baseline.name} was run, so there is nothing to compare."
    parts = []
    for verdict, phrase in _PHRASES.items():
        arms = [arm.name for arm in others if arm.compared and arm.compared.verdict == verdict]
        if arms:
            verb = "is" if len(arms) == 1 else "are"
            who = _listed(arms, len(others))
            parts.append(phrase.format(who=who, verb=verb, baseline=baseline.name))
    sentence = "; ".join(parts)
    return sentence[:1].upper() + sentence[1:] + "." if sentence.startswith("no ") else sentence + "."


_PHRASES: dict[Verdict, str] = {
    "better": "{who} {verb} better than {baseline}",
    "worse": "{who} {verb} worse than {baseline}",
    "diverged more": "{who} diverged more often than {baseline}",
    "diverged less": "{who} diverged less often than {baseline}",
    "no difference shown": "no difference from {baseline} is shown for {who}",
    "one seed: no interval": "one pair of runs is too few to judge {who}",
    "no finite pair": "{who} cannot be judged, as no pair of runs finished",
}


def describe(arm: ArmResult, comparison: Comparison) -> str:
    """What is known of one arm, without its name: "better by 0.012 bits per byte (95 % interval ...)"."""
    found = arm.compared
    if found is None:
        return "the baseline that the others are compared with"
    if found.verdict in ("diverged more", "diverged less"):
        return _diverged(arm, found, comparison)
    if found.verdict == "no finite pair":
        counts = _divergence_counts(arm, comparison)
        return f"no pair of runs in which both finished; it {counts}"
    text = _difference(found, comparison)
    if arm.diverged:
        text += f", over the seeds in which both finished: it {_divergence_counts(arm, comparison)}"
    return text


def _difference(found: Difference, comparison: Comparison) -> str:
    size, unit = _size(found, comparison), comparison.unit
    if found.verdict == "one seed: no interval":
        return f"{size} {unit} in the only pair of runs; one seed has no interval, so no verdict"
    if found.low is None:
        return _constant(found, size, comparison)
    evidence = _evidence(found, comparison)
    if found.verdict in ("better", "worse"):
        return f"{size} {unit} ({evidence})"
    shown = f"a difference of {at_least(found.detectable)} or more would have been"
    if found.low <= 0 <= (found.high or 0):
        digits = decimals(comparison)
        return f"no difference shown (difference {signed(found.mean, digits)}, {evidence}); {shown}"
    arms = len(comparison.arms) - 1
    return (
        f"no difference shown: {size} on its own ({evidence}), but not after correction for {arms} arms "
        f"(p = {probability(found.p_adjusted)}); {shown}"
    )


def _constant(found: Difference, size: str, comparison: Comparison) -> str:
    """The difference is the same in all pairs, which leaves no spread for an interval."""
    pairs = f"all {found.pairs} pairs"
    if found.verdict != "no difference shown":
        return f"{size} {comparison.unit} in {pairs}, exactly: no spread, so no interval"
    if found.p_value == 1:
        return f"no difference shown: equal to {comparison.baseline.name} in {pairs}"
    return f"no difference shown: {size} in {pairs}, exactly, but they are too few to rule out chance"


def _diverged(arm: ArmResult, found: Difference, comparison: Comparison) -> str:
    shown = found.divergence_p_adjusted is not None and found.divergence_p_adjusted <= comparison.alpha
    meaning = "more than chance" if shown else "not significant"
    p = probability(found.divergence_p_adjusted)
    p = p if p.startswith("<") else f"= {p}"
    text = f"{_divergence_counts(arm, comparison)} (adjusted p {p}: {meaning})"
    if found.pairs == 0:
        return text
    digits = decimals(comparison)
    difference = f"difference {signed(found.mean, digits)}"
    evidence = _evidence(found, comparison) if found.low is not None else _pairs(found)
    return f"{text}; where both finished, {difference} ({evidence})"


def _divergence_counts(arm: ArmResult, comparison: Comparison) -> str:
    baseline = comparison.baseline
    own = f"diverged in {arm.diverged} of {len(arm.runs)} seeds"
    return f"{own}, {baseline.name} in {baseline.diverged} of {len(baseline.runs)}"


def _size(found: Difference, comparison: Comparison) -> str:
    """ "better by 0.012"."""
    mean = found.mean or 0.0
    direction = "better" if (mean < 0) == comparison.lower_is_better else "worse"
    return f"{direction} by {fixed(abs(mean), decimals(comparison))}"


def _evidence(found: Difference, comparison: Comparison) -> str:
    """ "95 % interval 0.008 to 0.016, 3 pairs": of the size if the difference has a verdict, else signed."""
    low, high = found.low or 0.0, found.high or 0.0
    if found.verdict not in ("diverged more", "diverged less") and low * high > 0:
        low, high = sorted((abs(low), abs(high)))
    digits = decimals(comparison)
    level = 100 * (1 - comparison.alpha)
    return f"{level:g} % interval {fixed(low, digits)} to {fixed(high, digits)}, {_pairs(found)}"


def _pairs(found: Difference) -> str:
    return "1 pair" if found.pairs == 1 else f"{found.pairs} pairs"


def _listed(names: Sequence[str], total: int) -> str:
    """Up to four names; beyond that, how many of how many."""
    if len(names) > 4:
        return f"{len(names)} of {total} arms"
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"
