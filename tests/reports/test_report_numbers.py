import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.reports import numbers


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (numbers.probability, 0.0004, "< 0.001"),
        (numbers.probability, 0.0444, "0.044"),
        (numbers.probability, 0.5, "0.50"),
        (numbers.probability, None, "–"),
        (numbers.count, 1234567, "1,234,567"),
        (numbers.scientific, 1.5e15, "1.50 × 10¹⁵"),
        (numbers.scientific, 9999, "9,999"),
        (numbers.scientific, None, "–"),
        (numbers.duration, 12.34, "12.3 s"),
        (numbers.duration, 59.96, "1 min 00 s"),
        (numbers.duration, 3599.7, "1 h 00 min"),
        (numbers.duration, 7385, "2 h 03 min"),
        (numbers.duration, None, "–"),
        (numbers.memory, 3 * 2**20, "3 MiB"),
        (numbers.memory, 3 * 2**29, "1.50 GiB"),
        (numbers.at_least, 0.0201, "0.021"),
        (numbers.at_least, 0.02, "0.020"),
        (numbers.at_least, 99.1, "100"),
        (numbers.at_least, 0.0, "0"),
        (numbers.at_least, None, "–"),
        (numbers.plain, None, "–"),
        (numbers.plain, True, "yes"),
        (numbers.plain, -1234, "−1,234"),
        (numbers.plain, 3e-4, "0.0003"),
        (numbers.plain, [1, "a"], "1, a"),
        (numbers.plain, {"name": "muon", "lr": 0.02}, "muon (lr = 0.02)"),
        (numbers.plain, {"name": "muon"}, "muon"),
        (numbers.plain, {"a": 1}, '{"a": 1}'),
        (numbers.budget, {"tokens": 250_000}, "250,000 tokens"),
        (numbers.budget, {"flops": 1e15, "seconds": 600.0}, "1.00 × 10¹⁵ FLOPs, 10 min 00 s"),
        (numbers.budget, {"epochs": 2}, "epochs 2"),
        (numbers.budget, {}, "no limit"),
    ],
)
def test_format(function, value, text):
    assert function(value) == text


def test_memory_in_a_description_is_in_bytes():
    assert numbers.plain(2**34, "memory") == "16.00 GiB"
    assert numbers.plain(2**34, "cores") == "17,179,869,184"


def test_signs():
    assert numbers.signed(0.01234, 3) == "+0.012"
    assert numbers.signed(-0.01234, 4) == "−0.0123"
    assert numbers.fixed(-1.25, 2) == "−1.25"
    assert numbers.change(104.0, 100.0) == "+4 %"
    assert numbers.change(90.0, 100.0) == "−10 %"
    assert numbers.change(100.4, 100.0) == ""
    assert numbers.change(1.0, 0.0) == ""


@given(st.floats(1e-9, 1e6))
def test_at_least_is_never_less_and_hardly_more(value):
    shown = float(numbers.at_least(value))
    assert value * (1 - 1e-6) <= shown <= value * 1.1001


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-4])
def test_decimals_give_the_narrowest_half_width_two_digits(example, noise):
    comparison = example(4, 4, noise=noise)
    narrowest = min((a.compared.high - a.compared.low) / 2 for a in comparison.arms[1:])
    assert 10 <= math.floor(narrowest * 10 ** numbers.decimals(comparison)) < 100


def test_decimals_without_an_interval(example):
    assert numbers.decimals(example(1, 3)) == 4
    assert numbers.decimals(example(3, 1)) == 4
