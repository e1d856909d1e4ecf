from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from assay.config import Config, assign, flatten, parse_assignment, read_toml
from assay.errors import UserError


class Inner(Config):
    depth: Annotated[int, Field(gt=0)] = 4
    width: float | None = None
    kind: Literal["A", "B"] = "A"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width is not None and self.width < self.depth:
            raise UserError(f"width={self.width} is less than depth={self.depth}")
        return self


class Outer(Config):
    name: str
    inner: Inner = Inner()
    items: tuple[Inner, ...] = ()
    extra: Inner | None = None
    by_name: dict[str, list[Inner]] | None = None


# validation


def test_parse_and_dump_are_inverse() -> None:
    inner = {"depth": 2, "width": 3.5, "kind": "B"}
    data = {"name": "x", "inner": inner, "items": [inner], "extra": None, "by_name": {"a": [inner]}}
    outer = Outer.parse(data)
    assert outer.dump() == data
    assert Outer.parse(outer.dump()) == outer
    assert Outer.parse({"name": "x"}).inner == Inner(depth=4)


def test_configurations_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Outer.parse({"name": "x"}).name = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x", "iner": {}}, "unknown field 'iner'; nearest: inner, name"),
        ({"name": "x", "inner": {"dept": 3}}, "unknown field 'inner.dept'; nearest: depth"),
        ({"name": "x", "items": [{}, {"dept": 3}]}, "unknown field 'items.1.dept'; nearest: depth"),
        ({"name": "x", "extra": {"dept": 3}}, "unknown field 'extra.dept'; nearest: depth"),
        ({"name": "x", "by_name": {"a": [{"dept": 3}]}}, "unknown field 'by_name.a.0.dept'; nearest: depth"),
        ({}, "name is missing"),
        (
            {"name": "x", "inner": {"depth": "deep"}},
            "inner.depth='deep': input should be a valid integer, unable to parse string as an integer",
        ),
        ({"name": "x", "inner": {"depth": 0}}, "inner.depth=0: input should be greater than 0"),
        ({"name": "x", "inner": {"kind": "a"}}, "inner.kind='a': input should be 'A' or 'B'"),
        ({"name": "x", "inner": {"width": 1}}, "inner: width=1.0 is less than depth=4"),
        ({"name": "x", "items": [{}, {"depth": -1}]}, "items.1.depth=-1: input should be greater than 0"),
        ({"name": "x", "inner": 3}, "inner=3: input should be a valid dictionary or instance of Inner"),
        (
            {"name": 1, "inner": {"depth": 0, "kind": "C"}},
            "name=1: input should be a valid string (and 2 more)",
        ),
    ],
)
def test_a_mistake_is_one_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Outer.parse(data)
    assert str(caught.value) == message


def test_a_mistake_of_the_whole_table_names_no_field() -> None:
    with pytest.raises(UserError, match=r"^width=1\.0 is less than depth=4$"):
        Inner.parse({"width": 1})


# files


def test_read_toml(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[model]\nnorm = "seednorm"\nname = "Grüße"\n', encoding="utf-8")
    expected = {"model": {"norm": "seednorm", "name": "Grüße"}}
    assert read_toml(path) == read_toml(str(path)) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read configuration {path!r}: No such file or directory"),
        (b"\xff\xfe\x00", "cannot read configuration {path!r}: it is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_toml(path)
    assert str(caught.value) == reason.format(path=str(path))


def test_a_folder_is_not_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read configuration .*: Is a directory"):
        read_toml(tmp_path)


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[model]\nnorm = \n")
    with pytest.raises(UserError) as caught:
        read_toml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not valid TOML: ")
    assert "line 2" in message
    assert "\n" not in message


# assignments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.depth=6", ("model.depth", 6)),
        (" model.depth = 6 ", ("model.depth", 6)),
        ("lr=3e-4", ("lr", 3e-4)),
        ("tie=true", ("tie", True)),
        ("model.norm=seednorm", ("model.norm", "seednorm")),
        ('model.norm="seednorm"', ("model.norm", "seednorm")),
        ("model.norm= seednorm ", ("model.norm", "seednorm")),
        ("path=/a/b=c", ("path", "/a/b=c")),
        ("note=", ("note", "")),
        ('model.mixer=["softmax*3", "gated-attention"]', ("model.mixer", ["softmax*3", "gated-attention"])),
        (
            'model.norm={name = "seednorm", num_heads = 4}',
            ("model.norm", {"name": "seednorm", "num_heads": 4}),
        ),
    ],
)
def test_parse_assignment(text: str, expected: tuple[str, Any]) -> None:
    key, value = parse_assignment(text)
    assert (key, value) == expected
    assert type(value) is type(expected[1])


@pytest.mark.parametrize("text", ["model.depth", "=6", " = 6", ""])
def test_what_is_not_an_assignment(text: str) -> None:
    with pytest.raises(UserError, match=r"is not of the form FIELD=VALUE, for example model\.depth=6"):
        parse_assignment(text)


def test_assign_sets_dotted_fields_in_a_copy() -> None:
    data = {"model": {"depth": 4, "norm": "rms-norm"}, "seed": 1}
    before = copy.deepcopy(data)
    values = {"model.depth": 6, "optimizer.lr": 0.1, "seed": 2}
    expected = {"model": {"depth": 6, "norm": "rms-norm"}, "seed": 2, "optimizer": {"lr": 0.1}}
    assert assign(data, values) == expected
    assert assign(data, list(values.items())) == expected
    assert data == before


def test_assign_shares_nothing_with_what_it_was_given() -> None:
    data, value = {"a": {"b": [1]}}, {"c": [2]}
    result = assign(data, {"d": value})
    result["a"]["b"].append(9)
    result["d"]["c"].append(9)
    assert data == {"a": {"b": [1]}}
    assert value == {"c": [2]}


def test_a_path_into_a_named_slot_keeps_its_name() -> None:
    data = {"model": {"norm": "seednorm"}}
    expected = {"model": {"norm": {"name": "seednorm", "num_heads": 4}}}
    assert assign(data, {"model.norm.num_heads": 4}) == expected


def test_shorter_paths_come_first_and_later_values_win() -> None:
    data = {"model": {"norm": {"name": "rms-norm", "eps": 1.0}}}
    values = [("model.norm.num_heads", 4), ("model.norm", "seednorm")]
    assert assign(data, values) == {"model": {"norm": {"name": "seednorm", "num_heads": 4}}}
    values += [("model.norm.num_heads", 8), ("model.norm", "layer-norm")]
    assert assign(data, values) == {"model": {"norm": {"name": "layer-norm", "num_heads": 8}}}


@pytest.mark.parametrize("held", [4, [1, 2], True, None])
def test_a_path_through_what_is_not_a_table(held: Any) -> None:
    with pytest.raises(UserError) as caught:
        assign({"model": {"depth": held}}, {"model.depth.x": 1})
    assert str(caught.value) == f"cannot set 'model.depth.x': 'depth' holds {held!r}, not a table"


def test_flatten() -> None:
    data = {"model": {"depth": 4, "norm": {"name": "seednorm"}}, "seeds": [1, 2]}
    assert flatten(data) == {"model.depth": 4, "model.norm.name": "seednorm", "seeds": [1, 2]}


keys = st.text("abcdefgh_-", min_size=1, max_size=4)
leaves = st.integers() | st.booleans() | st.text("xyz", max_size=3) | st.lists(st.integers(), max_size=2)
tables = st.recursive(
    st.dictionaries(keys, leaves, min_size=1, max_size=3),
    lambda inner: st.dictionaries(keys, leaves | inner, min_size=1, max_size=3),
    max_leaves=8,
)


@given(tables)
def test_assign_undoes_flatten(data: dict[str, Any]) -> None:
    assert assign({}, flatten(data)) == data


@given(st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False))
def test_assignments_read_values_as_toml_does(value: Any) -> None:
    text = str(value).lower()
    assert parse_assignment(f"a.b={text}") == ("a.b", tomllib.loads(f"x = {text}")["x"])
    assert parse_assignment(f"a.b={text}")[1] == value
