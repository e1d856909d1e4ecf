"""The statistics of a comparison: pure functions of numbers, and ``compare_arms``, which applies them.

Runs are paired by seed (same data order, same evaluation batches), so seeds are the unit of replication: the
interval speaks about other seeds on this data and this budget, and about nothing else.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Collection, Mapping, Sequence

from assay.comparison.result import ArmResult, Difference, Verdict


@dataclasses.dataclass(frozen=True)
class Paired:
    """A paired mean difference; ``standard_error`` and what follows from it need two pairs that vary."""

    pairs: int
    mean: float | None = None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    relative: float | None = None
    p_value: float | None = None


def paired_difference(
    arm: Mapping[int, float | None], baseline: Mapping[int, float | None], level: float = 0.95
) -> Paired:
    """The mean of dᵢ = armᵢ − baselineᵢ over the n seeds in which both are finite, with Student's t.

        d̄ = Σ dᵢ / n        s² = Σ (dᵢ − d̄)² / (n − 1)        SE = s / √n
        interval = d̄ ± t(n−1; 1 − (1 − level)/2) · SE
        p = P(|T| ≥ |d̄| / SE),  T ~ t(n−1)
        relative = 100 · d̄ / |mean of baselineᵢ|

    With n < 2 there is no interval and no p-value.

    If all dᵢ are equal (to within rounding), s = 0 says nothing about the spread of other seeds: there is no
    interval, and p is that of the exact sign-flip test, which assumes no spread: 2^(1−n), or 1 if d̄ = 0.
    """
    left, right = _finite(arm), _finite(baseline)
    values = [(left[seed], right[seed]) for seed in sorted(left.keys() & right.keys())]
    pairs = len(values)
    if not pairs:
        return Paired(0)
    differences = [a - b for a, b in values]
    mean = math.fsum(differences) / pairs
    baseline_mean = math.fsum(b for _, b in values) / pairs
    relative = 100 * mean / abs(baseline_mean) if baseline_mean else None
    if pairs < 2:
        return Paired(pairs, mean, relative=relative)

    rounding = 4 * sys.float_info.epsilon * max(max(abs(a), abs(b)) for a, b in values)
    if max(differences) - min(differences) <= rounding:
        p_value = 1.0 if abs(mean) <= rounding else 2.0 ** (1 - pairs)
        return Paired(pairs, mean, relative=relative, p_value=p_value)

    from scipy.special import stdtr

    variance = math.fsum((difference - mean) ** 2 for difference in differences) / (pairs - 1)
    standard_error = math.sqrt(variance / pairs)
    half = _half_width(standard_error, pairs, 1 - level)
    p_value = float(2 * stdtr(pairs - 1, -abs(mean) / standard_error))
    return Paired(pairs, mean, standard_error, mean - half, mean + half, relative, p_value)


def detectable(standard_error: float, pairs: int, alpha: float = 0.05, arms: int = 1) -> float:
    """The smallest absolute mean difference that these pairs are sure to show among ``arms`` arms.

        t(n−1; 1 − α/(2m)) · SE,  n = pairs, m = arms

    It is the half-width of the interval at Bonferroni's level α/m. A mean at least this far from zero has
    p ≤ α/m, which Holm's procedure rejects whatever the other arms are.
    """
    return _half_width(standard_error, pairs, alpha / arms)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment of m p-values, which controls the chance of one or more false findings.

        p₍₁₎ ≤ … ≤ p₍ₘ₎        adjusted₍ᵢ₎ = min(1, max over j ≤ i of (m − j + 1) · p₍ⱼ₎)

    ``None`` (an arm without a test) stays ``None`` and counts in m, so that the correction is fixed before
    any run. Holm, 1979, Scandinavian Journal of Statistics 6.
    """
    adjusted: list[float | None] = [None] * len(p_values)
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, (len(p_values) - rank) * p)
        adjusted[index] = min(1.0, largest)
    return adjusted


def divergence_test(arm: Collection[int], baseline: Collection[int]) -> float | None:
    """McNemar's exact test on the seeds that diverged in each of two arms run with the same seeds.

    With b seeds that diverged in the arm only and c in the baseline only, X ~ Binomial(b + c, ½):

        p = min(1, 2 · P(X ≤ min(b, c)))

    ``None`` if no seed diverged in either.
    """
    if not arm and not baseline:
        return None
    only_arm = len(set(arm) - set(baseline))
    only_baseline = len(set(baseline) - set(arm))
    discordant = only_arm + only_baseline
    tail = sum(math.comb(discordant, k) for k in range(min(only_arm, only_baseline) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def clopper_pearson(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a rate seen as ``count`` of ``total``, from quantiles of the beta distribution.

        low  = B⁻¹(a/2; k, n − k + 1), 0 if k = 0
        high = B⁻¹(1 − a/2; k + 1, n − k), 1 if k = n        a = 1 − level

    Clopper and Pearson, 1934, Biometrika 26.
    """
    if not 0 <= count <= total or total == 0:
        raise ValueError(f"a rate is a count of at least one trial, not {count} of {total}")
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, total - count + 1, tail))
    high = 1.0 if count == total else float(betaincinv(count + 1, total - count, 1 - tail))
    return low, high


def verdict(
    pairs: int,
    mean: float | None,
    p_adjusted: float | None,
    diverged: int,
    baseline_diverged: int,
    *,
    alpha: float = 0.05,
    lower_is_better: bool = True,
) -> Verdict:
    """One phrase. Divergence decides first: a mean over the seeds that survived is no defence.

    "diverged more" and "diverged less" compare the counts as they are; ``divergence_test`` says whether
    chance alone would do that. Otherwise a difference is shown if its adjusted p-value is at most ``alpha``.
    """
    if diverged != baseline_diverged:
        return "diverged more" if diverged > baseline_diverged else "diverged less"
    if pairs == 0 or mean is None:
        return "no finite pair"
    if p_adjusted is None:
        return "one seed: no interval"
    if p_adjusted > alpha:
        return "no difference shown"
    return "better" if (mean < 0) == lower_is_better else "worse"


def compare_arms(arms: Sequence[ArmResult], *, alpha: float = 0.05, lower_is_better: bool = True) -> list[ArmResult]:
    """The arms with their summaries, and all but the first with their difference from the first.

    Intervals have level 1 − ``alpha``. The p-values of the differences are adjusted over the len(arms) − 1
    arms compared, and so, as a second family, are those of divergence. An arm and the baseline are compared
    on the seeds that both have.
    """
    if not arms:
        return []
    baseline, others = arms[0], arms[1:]
    paired = [paired_difference(_values(arm), _values(baseline), 1 - alpha) for arm in others]
    diverged = [_diverged_in_common(arm, baseline) for arm in others]
    divergence = [divergence_test(*seeds) for seeds in diverged]
    adjusted = holm([result.p_value for result in paired])
    divergence_adjusted = holm(divergence)

    compared = [_summarised(baseline)]
    for index, arm in enumerate(others):
        result = paired[index]
        error = result.standard_error
        difference = Difference(
            pairs=result.pairs,
            mean=result.mean,
            low=result.low,
            high=result.high,
            relative=result.relative,
            p_value=result.p_value,
            p_adjusted=adjusted[index],
            detectable=None if error is None else detectable(error, result.pairs, alpha, len(others)),
            divergence_p=divergence[index],
            divergence_p_adjusted=divergence_adjusted[index],
            verdict=verdict(
                result.pairs,
                result.mean,
                adjusted[index],
                *map(len, diverged[index]),
                alpha=alpha,
                lower_is_better=lower_is_better,
            ),
        )
        compared.append(_summarised(arm).model_copy(update={"compared": difference}))
    return compared


def _summarised(arm: ArmResult) -> ArmResult:
    values = [run.value for run in arm.runs if run.value is not None]
    mean = math.fsum(values) / len(values) if values else None
    deviation = None
    if mean is not None and len(values) > 1:
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return arm.model_copy(
        update={
            "mean": mean,
            "standard_deviation": deviation,
            "diverged": sum(run.status == "diverged" for run in arm.runs),
            "compared": None,
        }
    )


def _values(arm: ArmResult) -> dict[int, float | None]:
    return {run.seed: run.value for run in arm.runs}


def _diverged_in_common(arm: ArmResult, baseline: ArmResult) -> tuple[set[int], set[int]]:
    """The seeds, of those that both have, in which the arm diverged, and those in which the baseline did."""
    common = {run.seed for run in arm.runs} & {run.seed for run in baseline.runs}
    first, second = ({run.seed for run in side.runs if run.status == "diverged"} & common for side in (arm, baseline))
    return first, second


def _half_width(standard_error: float, pairs: int, alpha: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(pairs - 1, 1 - alpha / 2)) * standard_error


def _finite(values: Mapping[int, float | None]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if value is not None and math.isfinite(value)}
