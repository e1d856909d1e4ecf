"""The rule from values to a verdict."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from assay.claims.judging import Quantity, Region, judge, overall
from assay.errors import UserError


class TestRegions:
    @pytest.mark.parametrize(
        ("text", "inside", "outside"),
        [
            ("< 0", [-1e-9, -5.0], [0.0, 1.0]),
            ("<= 0", [0.0, -5.0], [1e-9]),
            ("> 1.2", [1.3], [1.2, -3.0]),
            (">= 8", [8.0, 24.0], [7.99]),
            ("-0.02 .. 0.02", [-0.02, 0.0, 0.02], [-0.021, 0.5]),
            (">1e-3", [0.0011], [0.001]),
        ],
    )
    def test_what_lies_in_them(self, text: str, inside: list[float], outside: list[float]) -> None:
        region = Region.parse(text)
        assert all(x in region for x in inside)
        assert not any(x in region for x in outside)

    @pytest.mark.parametrize("text", ["", "lower", "= 3", "< x", "2 .. 1", "0 ..", "<> 1"])
    def test_anything_else_is_refused_with_an_example(self, text: str) -> None:
        with pytest.raises(UserError, match="is no region; write for example '< 0'"):
            Region.parse(text)

    @pytest.mark.parametrize(
        ("text", "low", "high", "verdict"),
        [
            ("< 0", -2, -1, "supported"),
            ("< 0", -2, 0, "inconclusive at this scale"),
            ("< 0", -2, 1, "inconclusive at this scale"),
            ("< 0", 1, 2, "not supported"),
            ("< 0", 0, 0, "not supported"),
            ("<= 0", 0, 0, "supported"),
            ("> 1.2", 1.3, 9, "supported"),
            ("> 1.2", 0, 1.1, "not supported"),
            ("0 .. 1", 0, 1, "supported"),
            ("0 .. 1", -1, 2, "inconclusive at this scale"),
            ("0 .. 1", 2, 3, "not supported"),
        ],
    )
    def test_an_interval_decides_only_if_it_lies_on_one_side(
        self, text: str, low: float, high: float, verdict: str
    ) -> None:
        assert Region.parse(text).verdict(low, high) == verdict


VALUES = {
    "baseline": {0: 3.0, 1: 3.2, 2: 3.1},
    "seednorm": {0: 2.9, 1: 3.0, 2: 2.95},
    "a - b": {0: 1.0, 1: 2.0, 2: 3.0},
}


class TestQuantities:
    def test_a_difference_is_the_paired_t_interval(self) -> None:
        (outcome,) = judge(VALUES, {"seednorm - baseline": "< 0"})
        differences = [-0.1, -0.2, -0.15]
        expected = stats.t.interval(0.95, 2, loc=stats.tmean(differences), scale=stats.sem(differences))
        assert (outcome.low, outcome.high) == pytest.approx(expected)
        assert outcome.mean == pytest.approx(-0.15)
        assert (outcome.verdict, outcome.pairs) == ("supported", 3)

    def test_a_ratio_is_the_interval_of_the_logarithm(self) -> None:
        (outcome,) = judge(VALUES, {"seednorm / baseline": "< 1"})
        logarithms = [math.log(VALUES["seednorm"][s] / VALUES["baseline"][s]) for s in range(3)]
        expected = stats.t.interval(0.95, 2, loc=stats.tmean(logarithms), scale=stats.sem(logarithms))
        assert (outcome.low, outcome.high) == pytest.approx([math.exp(x) for x in expected])
        assert outcome.mean == pytest.approx(stats.gmean([math.exp(x) for x in logarithms]))

    @given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6, unique=True), st.floats(0.1, 10))
    def test_a_ratio_does_not_depend_on_the_unit(self, values: list[float], unit: float) -> None:
        left = dict(enumerate(values))
        right = dict(enumerate(reversed(values)))
        one = judge({"a": left, "b": right}, {"a / b": "< 1"})[0]
        scaled = {"a": {k: v * unit for k, v in left.items()}, "b": {k: v * unit for k, v in right.items()}}
        two = judge(scaled, {"a / b": "< 1"})[0]
        assert two.mean == pytest.approx(one.mean, rel=1e-6)

    def test_a_single_quantity_has_an_interval_too(self) -> None:
        (outcome,) = judge(VALUES, {"baseline": "> 2"})
        expected = stats.t.interval(0.95, 2, loc=3.1, scale=stats.sem([3.0, 3.2, 3.1]))
        assert (outcome.low, outcome.high) == pytest.approx(expected)

    def test_a_name_that_holds_a_sign_is_a_name(self) -> None:
        assert Quantity.parse("a - b", VALUES) == Quantity("a - b")

    def test_what_was_not_measured_is_named(self) -> None:
        with pytest.raises(UserError, match=r"'seednorm - base' is no measured quantity.*: baseline, seednorm"):
            judge(VALUES, {"seednorm - base": "< 0"})

    def test_a_ratio_of_what_is_not_positive_is_refused(self) -> None:
        with pytest.raises(UserError, match="a ratio needs values above 0; 'a' has -1"):
            judge({"a": {0: -1.0}, "b": {0: 1.0}}, {"a / b": "< 1"})


class TestFewValues:
    def test_one_seed_gives_no_interval(self) -> None:
        (outcome,) = judge({"a": {0: -1.0}}, {"a": "< 0"})
        assert (outcome.low, outcome.verdict) == (None, "inconclusive at this scale")

    def test_unless_the_measurement_is_exact(self) -> None:
        (outcome,) = judge({"a": {0: -1.0}}, {"a": "< 0"}, exact=True)
        assert (outcome.low, outcome.high, outcome.verdict) == (-1.0, -1.0, "supported")

    def test_values_that_agree_are_their_own_interval(self) -> None:
        (outcome,) = judge({"violations": {0: 0.0, 1: 0.0, 2: 0.0}}, {"violations": "<= 0"})
        assert (outcome.low, outcome.high, outcome.verdict) == (0.0, 0.0, "supported")


class TestDivergence:
    def test_an_arm_that_diverges_alone_is_not_supported_however_good_the_rest(self) -> None:
        values = {"a": {0: 1.0, 1: 1.1, 2: None}, "b": {0: 3.0, 1: 3.2, 2: 3.1}}
        assert judge(values, {"a - b": "< 0"})[0].verdict == "not supported"

    def test_a_pair_whose_baseline_diverged_does_not_count(self) -> None:
        values = {"a": {0: 1.0, 1: 1.1, 2: 1.0}, "b": {0: 3.0, 1: 3.11, 2: None}}
        (outcome,) = judge(values, {"a - b": "< 0"})
        assert (outcome.pairs, outcome.verdict) == (2, "supported")

    def test_nothing_finite_is_inconclusive(self) -> None:
        (outcome,) = judge({"a": {0: None}, "b": {0: None}}, {"a - b": "< 0"})
        assert (outcome.mean, outcome.verdict) == (None, "inconclusive at this scale")


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "inconclusive at this scale"], "inconclusive at this scale"),
        (["supported", "inconclusive at this scale", "not supported"], "not supported"),
    ],
)
def test_a_claim_stands_and_falls_with_all_its_expectations(verdicts: list[str], expected: str) -> None:
    values = {"supported": (1.0, 1.0), "not supported": (-1.0, -1.0), "inconclusive at this scale": (-1.0, 2.0)}
    measured = {f"q{i}": dict(enumerate(values[v])) for i, v in enumerate(verdicts)}
    assert overall(judge(measured, dict.fromkeys(measured, "> 0"))) == expected
