import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.catalog.dates import check_date, check_since, clearer, has_year, reaches
from assay.errors import UserError

DATES = st.dates()


@given(DATES)
def test_a_day_of_the_calendar_is_a_date_with_and_without_its_year(day):
    assert check_date(day.isoformat()) == day.isoformat()
    assert check_date("-" + day.isoformat()[4:]) == "-" + day.isoformat()[4:]
    assert has_year(day.isoformat())
    assert not has_year("-" + day.isoformat()[4:])


def test_29_february_needs_a_leap_year_or_an_open_one():
    assert check_date("2024-02-29") == "2024-02-29"
    assert check_date("--02-29") == "--02-29"
    with pytest.raises(ValueError, match="day is out of range"):
        check_date("2025-02-29")


@pytest.mark.parametrize(
    "text", ["", "2025", "2025-13-01", "25-01-01", "-01-01", "2025-1-1", "--02-30", "2025-10-26\n", "٢٠٢٥-01-01"]
)
def test_what_is_not_a_date_is_refused(text):
    with pytest.raises(ValueError, match=r"neither|must be in|out of range"):
        check_date(text)


@given(DATES, DATES)
def test_since_agrees_with_the_calendar_at_each_precision(day, since):
    text, bound = day.isoformat(), since.isoformat()
    assert reaches(text, check_since(bound)) == (day >= since)
    assert reaches(text, check_since(bound[:7])) == ((day.year, day.month) >= (since.year, since.month))
    assert reaches(text, check_since(bound[:4])) == (day.year >= since.year)


def test_an_unknown_year_reaches_nothing_but_no_bound():
    for date in (None, "--12-31"):
        assert reaches(date, None)
        assert not reaches(date, "0001")


@pytest.mark.parametrize("since", ["", "25", "2025-", "2025-13", "2025-02-30", "yesterday", "0000", "--06-09"])
def test_since_names_its_forms(since):
    with pytest.raises(UserError, match="YYYY, YYYY-MM or YYYY-MM-DD"):
        check_since(since)


def test_the_clearer_date_has_a_year_and_the_first_wins():
    assert clearer("--06-09", "2025-06-09") == "2025-06-09"
    assert clearer("2025-06-09", "2024-06-09") == "2025-06-09"
    assert clearer("--06-09", "--06-10") == "--06-09"
    assert clearer(None, "--06-10") == "--06-10"
    assert clearer(None, None) is None
