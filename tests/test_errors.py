from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import AssayError, Interrupted, UserError, nearest, unknown


def test_exit_statuses() -> None:
    assert [kind.exit_status for kind in (AssayError, UserError, Interrupted)] == [1, 2, 130]


def test_a_user_error_is_also_a_value_error_and_one_except_catches_all() -> None:
    with pytest.raises(ValueError, match="too small"):
        raise UserError("too small")
    for kind in (UserError, Interrupted):
        with pytest.raises(AssayError):
            raise kind("stopped")
    assert not issubclass(AssayError, ValueError)


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("seednrm", ["rms-norm", "seednorm"], "nearest: seednorm"),
        ("norm", ["a-norm", "b-norm", "c-norm", "d-norm"], "nearest: d-norm, c-norm, b-norm"),
        ("xyz", ["beta", "alpha"], "known: alpha, beta"),
        ("xyz", [], "none are known"),
        ("qqq", [f"name-{i:02}" for i in range(12)], "known: " + ", ".join(f"name-{i:02}" for i in range(12))),
        (
            "qqq",
            [f"name-{i:02}" for i in range(13)],
            "known: " + ", ".join(f"name-{i:02}" for i in range(12)) + ", ...",
        ),
    ],
)
def test_nearest(name: str, known: list[str], expected: str) -> None:
    assert nearest(name, iter(known)) == expected


@given(st.lists(st.text(min_size=1), unique=True), st.data())
def test_a_known_name_is_its_own_nearest(known: list[str], data: st.DataObject) -> None:
    if known:
        name = data.draw(st.sampled_from(known))
        assert name in nearest(name, known)
        assert nearest(name, known).startswith("nearest: ")


def test_unknown_names_the_kind_the_name_and_the_nearest() -> None:
    error = unknown("norm", "seednrm", ["rms-norm", "seednorm"])
    assert isinstance(error, UserError)
    assert str(error) == "unknown norm 'seednrm'; nearest: seednorm"
