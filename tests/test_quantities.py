"""Numbers as people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.config import Config
from assay.errors import UserError
from assay.quantities import Amount, Count, Seconds, duration, quantity, short


class Example(Config):
    count: Count = 1
    amount: Amount = 1.0
    seconds: Seconds = 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("250k", 250e3),
        ("250K", 250e3),
        ("1.5M", 1.5e6),
        ("2b", 2e9),
        ("2G", 2e9),
        ("3T", 3e12),
        ("4P", 4e15),
        ("5E", 5e18),
        ("1.5e15", 1.5e15),
        ("2e3k", 2e6),
        ("1_000_000", 1e6),
        ("  12 k ", 12e3),
        ("-3", -3.0),
    ],
)
def test_quantities(text: str, value: float) -> None:
    assert quantity(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("90s", 90), ("10min", 600), ("2h", 7200), ("1.5 d", 129600), ("1e2S", 100)]
)
def test_durations(text: str, value: float) -> None:
    assert duration(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "k", "ten", "1..5", "12x", "1,000", "_1", "1__0", "nan", "inf", "0x10", "5 k k"]
)
def test_what_is_no_quantity_is_named(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a number such as 250000, 250k or 1\.5M") as caught:
        quantity(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["", "soon", "5m", "3k", "1:30"])
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(UserError, match="is not a time such as 90, 90s, 10min or 2h"):
        duration(text)


@given(st.integers() | st.floats() | st.none() | st.lists(st.integers()))
def test_what_is_no_string_passes(value: object) -> None:
    assert quantity(value) is value
    assert duration(value) is value


@given(st.floats(1e-3, 9.99e20))
def test_short_is_read_back_to_three_digits(value: float) -> None:
    text = short(value)
    assert quantity(text) == pytest.approx(value, rel=5.001e-3)
    assert len(text.rstrip("kMBTPE")) <= 7
    if value >= 1:
        assert "e" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (999, "999"),
        (999.9, "1k"),
        (1000, "1k"),
        (250_000, "250k"),
        (999_499, "999k"),
        (999_999, "1M"),
        (1_234_567, "1.23M"),
        (2e9, "2B"),
        (3.14159e12, "3.14T"),
        (5e15, "5P"),
        (6e18, "6E"),
        (-1500, "-1.5k"),
    ],
)
def test_short(value: float, text: str) -> None:
    assert short(value) == text


class TestFields:
    def test_all_forms(self) -> None:
        example = Example.parse({"count": "250k", "amount": "1.5e15", "seconds": "10min"})
        assert (example.count, example.amount, example.seconds) == (250_000, 1.5e15, 600.0)
        assert isinstance(example.count, int)
        assert Example.parse({"count": 7, "amount": 2, "seconds": 0.5}).dump() == {
            "count": 7,
            "amount": 2.0,
            "seconds": 0.5,
        }
        assert Example.parse({"count": 250e3}).count == 250_000

    @pytest.mark.parametrize(
        ("field", "value", "shown"),
        [
            ("count", "0", "count='0': input should be greater than 0"),
            ("count", -1, "count=-1: input should be greater than 0"),
            ("count", "2.5", "count=2.5: input should be a valid integer"),
            ("count", "1e999", "count=inf: input should be a finite number"),
            ("count", [1], "count=[1]: input should be a valid integer"),
            ("amount", 0, "amount=0: input should be greater than 0"),
            ("amount", "-1k", "amount='-1k': input should be greater than 0"),
            ("amount", "1e999", "amount='1e999': input should be a finite number"),
            ("amount", math.inf, "amount=inf: input should be a finite number"),
            ("amount", math.nan, "amount=nan: input should be"),
            ("amount", "much", "amount: 'much' is not a number such as 250000, 250k or 1.5M"),
            ("seconds", "0s", "seconds='0s': input should be greater than 0"),
            ("seconds", math.inf, "seconds=inf: input should be a finite number"),
            ("seconds", "later", "seconds: 'later' is not a time such as 90, 90s, 10min or 2h"),
        ],
    )
    def test_mistakes_are_one_line(self, field: str, value: object, shown: str) -> None:
        with pytest.raises(UserError) as caught:
            Example.parse({field: value})
        assert str(caught.value).startswith(shown)
        assert "\n" not in str(caught.value)
