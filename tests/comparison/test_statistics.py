import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from assay.comparison.result import ArmResult, RunResult
from assay.comparison.statistics import (
    clopper_pearson,
    compare_arms,
    detectable,
    divergence_test,
    holm,
    paired_difference,
    verdict,
)

ARM = {0: 1.241, 1: 1.259, 2: 1.230, 3: 1.252}
BASELINE = {0: 1.260, 1: 1.266, 2: 1.249, 3: 1.261}

# Integers as values keep sums exact, so that the properties hold without rounding.
values = st.lists(st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000)), min_size=2, max_size=12).filter(
    lambda pairs: len({a - b for a, b in pairs}) > 1
)


def split(pairs):
    return {i: float(a) for i, (a, _) in enumerate(pairs)}, {i: float(b) for i, (_, b) in enumerate(pairs)}


def arm(name, *values):
    """An arm whose run with seed i has the i-th value; ``None`` diverged."""
    runs = [
        RunResult(
            arm=name,
            seed=seed,
            id=f"{name}-{seed}",
            status="diverged" if value is None else "complete",
            value=value,
            tokens=1,
            flops=1,
            seconds=1,
            tokens_per_second=1,
            peak_memory=1,
            parameters=1,
        )
        for seed, value in enumerate(values)
    ]
    return ArmResult(name=name, runs=runs)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_paired_difference_agrees_with_scipy(level):
    found = paired_difference(ARM, BASELINE, level)
    expected = stats.ttest_rel(list(ARM.values()), list(BASELINE.values()))
    interval = expected.confidence_interval(level)
    assert found.pairs == 4
    assert found.mean == pytest.approx(-0.0135, abs=1e-12)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.relative == pytest.approx(100 * -0.0135 / 1.259)


@given(values)
def test_paired_difference_agrees_with_scipy_on_any_pairs(pairs):
    found = paired_difference(*split(pairs))
    expected = stats.ttest_rel(*zip(*pairs, strict=True))
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.low <= found.mean <= found.high


def test_two_pairs_by_hand():
    # t(1) is Cauchy: its 97.5 % quantile is tan(0.475 π), and P(|T| ≥ 3) = 1 − 2·atan(3)/π.
    found = paired_difference({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0})
    assert (found.mean, found.standard_error) == pytest.approx((1.5, 0.5))
    assert found.high == pytest.approx(1.5 + 0.5 * math.tan(0.475 * math.pi))
    assert found.p_value == pytest.approx(1 - 2 * math.atan(3) / math.pi)
    assert found.relative is None


def test_only_common_finite_seeds_count():
    arm_values = ARM | {4: None, 5: 1.0, 6: math.nan, 7: 1.0, 8: 1.0}
    baseline_values = BASELINE | {4: 1.0, 5: None, 6: 1.0, 7: math.inf, 9: 1.0}
    assert paired_difference(arm_values, baseline_values) == paired_difference(ARM, BASELINE)


def test_no_pair_and_one_pair_have_no_interval():
    assert paired_difference({0: None}, {0: 1.0}).pairs == 0
    assert paired_difference({0: None}, {0: 1.0}).mean is None
    single = paired_difference({0: 1.1}, {0: 1.0})
    assert (single.pairs, single.mean) == (1, pytest.approx(0.1))
    assert (single.low, single.high, single.p_value, single.standard_error) == (None, None, None, None)
    assert single.relative == pytest.approx(10)


@pytest.mark.parametrize(("pairs", "p_value"), [(2, 0.5), (3, 0.25), (6, 0.03125)])
def test_equal_differences_fall_back_on_the_sign_flip_test(pairs, p_value):
    # 0.1 does not survive adding and subtracting exactly: the differences vary in the last bit.
    baseline = {seed: 0.7 + 2.1 * seed for seed in range(pairs)}
    arm_values = {seed: value + 0.1 for seed, value in baseline.items()}
    assert len({arm_values[seed] - baseline[seed] for seed in baseline}) > 1
    shifted = paired_difference(arm_values, baseline)
    assert shifted.mean == pytest.approx(0.1)
    assert shifted.p_value == p_value
    assert (shifted.low, shifted.high, shifted.standard_error) == (None, None, None)
    assert paired_difference(baseline, baseline).p_value == 1
    assert paired_difference(baseline, baseline).low is None


@given(values, st.integers(-1000, 1000))
def test_translating_both_sides_changes_nothing(pairs, shift):
    moved = paired_difference(*split([(a + shift, b + shift) for a, b in pairs]))
    found = paired_difference(*split(pairs))
    assert (moved.mean, moved.low, moved.high, moved.p_value) == (
        found.mean,
        found.low,
        found.high,
        found.p_value,
    )


@given(values, st.sampled_from([0.125, 0.5, 4.0]))
def test_scaling_both_sides_scales_the_difference(pairs, factor):
    scaled = paired_difference(*split([(a * factor, b * factor) for a, b in pairs]))
    found = paired_difference(*split(pairs))
    assert scaled.mean == found.mean * factor
    assert (scaled.low, scaled.high) == pytest.approx((found.low * factor, found.high * factor), rel=1e-9)
    assert scaled.p_value == pytest.approx(found.p_value)
    assert scaled.relative == (None if found.relative is None else pytest.approx(found.relative))


@given(values)
def test_swapping_the_sides_flips_the_sign(pairs):
    one, other = split(pairs)
    there, back = paired_difference(one, other), paired_difference(other, one)
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low))
    assert there.p_value == pytest.approx(back.p_value)


@given(values, st.sampled_from([0.01, 0.05, 0.2]))
def test_interval_excludes_zero_exactly_when_p_is_below_alpha(pairs, alpha):
    found = paired_difference(*split(pairs), 1 - alpha)
    if abs(found.p_value - alpha) > 1e-9:
        assert (found.low > 0 or found.high < 0) == (found.p_value < alpha)


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(20250101)
    truth, rounds, covered = 0.3, 4000, 0
    for _ in range(rounds):
        baseline = generator.normal(0, 5, 4)
        arm_values = baseline + generator.normal(truth, 1, 4)
        found = paired_difference(dict(enumerate(arm_values)), dict(enumerate(baseline)))
        covered += found.low <= truth <= found.high
    # Four standard errors of a rate of 95 % over 4000 rounds.
    assert covered / rounds == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / rounds))


def test_holm_by_hand():
    # Sorted: 0.005·4, 0.01·3, 0.03·2, 0.04·1 → 0.02, 0.03, 0.06, max(0.06, 0.04).
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_counts_arms_without_a_test():
    assert holm([0.01, None, 0.02]) == [pytest.approx(0.03), None, pytest.approx(0.04)]
    assert holm([None]) == [None]


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=10)


@given(p_values)
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(raw):
    adjusted = holm(raw)
    for p, q in zip(raw, adjusted, strict=True):
        assert p <= q <= min(1, len(raw) * p)
    ordered = [q for _, q in sorted(zip(raw, adjusted, strict=True))]
    assert ordered == sorted(ordered)


@given(p_values, st.randoms())
def test_holm_does_not_depend_on_the_order_of_arms(raw, random):
    order = list(range(len(raw)))
    random.shuffle(order)
    adjusted = holm(raw)
    assert holm([raw[i] for i in order]) == [adjusted[i] for i in order]


@given(p_values, st.sampled_from([0.01, 0.05, 0.1]))
def test_holm_adjusted_rejects_what_the_step_down_procedure_rejects(raw, alpha):
    rejected = set()
    for rank, (p, index) in enumerate(sorted((p, i) for i, p in enumerate(raw))):
        if (len(raw) - rank) * p > alpha:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(raw)) if p <= alpha} == rejected


@given(values, st.integers(1, 12))
def test_a_mean_beyond_detectable_is_shown_whatever_the_other_arms_are(pairs, arms):
    found = paired_difference(*split(pairs))
    limit = detectable(found.standard_error, found.pairs, 0.05, arms)
    if abs(abs(found.mean) - limit) > 1e-9:
        shown = holm([found.p_value] + [1.0] * (arms - 1))[0] <= 0.05
        assert shown == (abs(found.mean) > limit)


def test_detectable_is_the_half_width_at_bonferronis_level():
    found = paired_difference(ARM, BASELINE, 1 - 0.05 / 4)
    assert detectable(found.standard_error, 4, 0.05, 4) == pytest.approx(found.high - found.mean)
    plain = paired_difference(ARM, BASELINE)
    assert detectable(plain.standard_error, 4) == pytest.approx(plain.mean - plain.low)


@pytest.mark.parametrize(
    ("arm_seeds", "baseline_seeds"),
    [({0}, set()), ({0, 1, 2, 3, 4, 5}, set()), ({0, 1, 2, 3, 4}, {4, 5}), ({7, 8}, {1, 2, 3, 4, 5, 6})],
)
def test_divergence_test_is_the_binomial_test_of_discordant_seeds(arm_seeds, baseline_seeds):
    only_arm, only_baseline = len(arm_seeds - baseline_seeds), len(baseline_seeds - arm_seeds)
    expected = stats.binomtest(only_arm, only_arm + only_baseline, 0.5).pvalue
    assert divergence_test(arm_seeds, baseline_seeds) == pytest.approx(expected)
    assert divergence_test(baseline_seeds, arm_seeds) == pytest.approx(expected)


def test_divergence_test_without_discordant_seeds():
    assert divergence_test(set(), set()) is None
    assert divergence_test({1, 2}, {1, 2}) == 1


@pytest.mark.parametrize(("count", "total"), [(0, 3), (1, 3), (3, 3), (7, 20), (0, 1), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_clopper_pearson_agrees_with_scipy(count, total, level):
    expected = stats.binomtest(count, total).proportion_ci(level, method="exact")
    assert clopper_pearson(count, total, level) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("count", "total"), [(-1, 3), (4, 3), (0, 0)])
def test_clopper_pearson_refuses_what_is_no_rate(count, total):
    with pytest.raises(ValueError, match=f"{count} of {total}"):
        clopper_pearson(count, total)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((3, -0.1, 0.01, 0, 0), "better"),
        ((3, 0.1, 0.01, 0, 0), "worse"),
        ((3, -0.1, 0.05, 0, 0), "better"),
        ((3, -0.1, 0.0501, 0, 0), "no difference shown"),
        ((3, 0.0, 1.0, 0, 0), "no difference shown"),
        ((1, -0.1, None, 0, 0), "one seed: no interval"),
        ((0, None, None, 3, 3), "no finite pair"),
        ((3, -0.1, 0.01, 1, 0), "diverged more"),
        ((3, 0.1, 0.01, 0, 1), "diverged less"),
        ((3, -0.1, 0.01, 1, 1), "better"),
    ],
)
def test_verdict(arguments, expected):
    assert verdict(*arguments) == expected


def test_verdict_where_higher_is_better():
    assert verdict(3, 0.1, 0.01, 0, 0, lower_is_better=False) == "better"
    assert verdict(3, -0.1, 0.01, 0, 0, lower_is_better=False) == "worse"
    assert verdict(3, 0.1, 0.04, 0, 0, alpha=0.01) == "no difference shown"


def test_compare_arms_fills_in_every_arm():
    arms = [
        arm("baseline", 1.30, 1.32, 1.31, 1.33),
        arm("good", 1.20, 1.221, 1.212, 1.23),
        arm("noisy", 1.40, 1.22, 1.35, 1.26),
        arm("fragile", 1.10, None, 1.13, None),
    ]
    baseline, good, noisy, fragile = compare_arms(arms)
    assert baseline.compared is None
    assert (baseline.mean, baseline.diverged) == (pytest.approx(1.315), 0)
    assert baseline.standard_deviation == pytest.approx(np.std([1.30, 1.32, 1.31, 1.33], ddof=1))
    assert [a.compared.verdict for a in (good, noisy, fragile)] == [
        "better",
        "no difference shown",
        "diverged more",
    ]
    raw = [stats.ttest_rel([r.value for r in a.runs], [r.value for r in baseline.runs]).pvalue for a in (good, noisy)]
    raw.append(stats.ttest_rel([1.10, 1.13], [1.30, 1.31]).pvalue)
    assert [a.compared.p_adjusted for a in (good, noisy, fragile)] == pytest.approx(holm(raw))
    assert good.compared.detectable == pytest.approx(
        stats.t.ppf(1 - 0.05 / 6, 3) * np.std([-0.1, -0.099, -0.098, -0.1], ddof=1) / 2
    )
    assert good.compared.relative == pytest.approx(100 * -0.09925 / 1.315)
    assert (fragile.mean, fragile.diverged, fragile.compared.pairs) == (pytest.approx(1.115), 2, 2)
    assert fragile.compared.divergence_p == 0.5
    assert fragile.compared.divergence_p_adjusted == 1
    assert (good.compared.divergence_p, noisy.compared.divergence_p) == (None, None)


def test_compare_arms_with_one_seed_and_with_none_finite():
    single = compare_arms([arm("baseline", 1.3), arm("a", 1.2), arm("b", None)])
    assert single[0].standard_deviation is None
    assert single[1].compared.verdict == "one seed: no interval"
    assert single[1].compared.mean == pytest.approx(-0.1)
    assert single[2].compared.verdict == "diverged more"
    assert (single[2].mean, single[2].compared.pairs) == (None, 0)
    lost = compare_arms([arm("baseline", None, None), arm("a", None, None)])
    assert lost[1].compared.verdict == "no finite pair"
    assert lost[1].compared.divergence_p == 1


def test_compare_arms_counts_only_seeds_that_both_have():
    longer = compare_arms([arm("baseline", 1.3, 1.31, None), arm("a", 1.2, 1.26)])[1]
    assert longer.compared.verdict == "no difference shown"
    assert longer.compared.divergence_p is None


def test_compare_arms_again_gives_the_same():
    once = compare_arms([arm("baseline", 1.3, 1.31), arm("a", 1.2, 1.25)])
    assert compare_arms(once) == once
    assert compare_arms(list(reversed(once)))[0].compared is None
    assert compare_arms([]) == []


def test_a_family_of_equal_arms_is_seldom_told_apart():
    generator = np.random.default_rng(7)
    rounds, false_findings = 300, 0
    for _ in range(rounds):
        arms = [arm(str(i), *generator.normal(1.3, 0.01, 3)) for i in range(5)]
        false_findings += any(a.compared.verdict in ("better", "worse") for a in compare_arms(arms)[1:])
    assert false_findings / rounds <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / rounds)
