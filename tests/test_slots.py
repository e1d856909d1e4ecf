from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.config import Config
from assay.errors import UserError
from assay.registry import Registry
from assay.slots import Component, In, Pattern

shapes: Registry[Any] = Registry("shape")
colours: Registry[Any] = Registry("colour")


@shapes.register("round")
class Round:
    def __init__(self, size: int, *, radius: float = 1.0, table: dict[str, Any] | None = None) -> None:
        self.given = size, radius, table


@shapes.register("square")
class Square:
    def __init__(self, *, side: int = 1, mode: Literal["A", "B"] = "A") -> None:
        self.given = side, mode


@colours.register("round")
class Red:
    pass


class Picture(Config):
    shape: Annotated[Component[Any], In(shapes)] = Component(shapes, "square")
    row: Annotated[Pattern[Any], In(shapes, pattern=True)] = Pattern((Component(shapes, "round"),))


class Sketch(Config):
    shape: Annotated[Component[Any], In(shapes, default="round")]
    row: Annotated[Pattern[Any], In(shapes, default="square", pattern=True)]


# one component


def test_a_name_or_a_table_with_its_name() -> None:
    assert Component.parse(shapes, "round") == Component(shapes, "round", {})
    parsed = Component.parse(shapes, {"name": "round", "radius": "2.5"})
    assert parsed == Component(shapes, "round", {"radius": 2.5})
    assert parsed.build(size=4).given == (4, 2.5, None)
    assert Component.parse(shapes, parsed) is parsed


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rond", "unknown shape 'rond'; nearest: round"),
        ({"name": "rond", "radius": 1}, "unknown shape 'rond'; nearest: round"),
        ({"name": "round", "radus": 1}, "shape 'round' has no option 'radus'; nearest: radius"),
        (
            {"name": "square", "mode": "a"},
            "shape 'square', option mode='a': input should be 'A' or 'B'",
        ),
        ({"radius": 1}, "a shape is a name, or a table with 'name' and its options, not {'radius': 1}"),
        ({"name": 3}, "a shape is a name, or a table with 'name' and its options, not {'name': 3}"),
        (3, "a shape is a name, or a table with 'name' and its options, not 3"),
        (None, "a shape is a name, or a table with 'name' and its options, not None"),
        (["round"], "a shape is a name, or a table with 'name' and its options, not ['round']"),
    ],
)
def test_what_is_not_a_component(value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Component.parse(shapes, value)
    assert str(caught.value) == message


def test_a_component_of_another_kind_does_not_fit() -> None:
    with pytest.raises(UserError, match="a shape is a name, or a table"):
        Component.parse(shapes, Component(colours, "round"))
    with pytest.raises(UserError, match="a shape is a name, or a table"):
        Pattern.parse(shapes, Pattern((Component(colours, "round"),)))
    assert Component(shapes, "round") != Component(colours, "round")


@pytest.mark.parametrize(
    "value", ["round", {"name": "round", "radius": 2.0}, {"name": "square", "side": 3, "mode": "B"}]
)
def test_dump_is_the_shortest_value_that_parses_back(value: Any) -> None:
    component = Component.parse(shapes, value)
    assert component.dump() == value
    assert Component.parse(shapes, component.dump()) == component


def test_a_table_without_options_dumps_to_its_name() -> None:
    assert Component.parse(shapes, {"name": "round"}).dump() == "round"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"radius": 2.0, "table": {"a": 1, "b": 2}}, {"table": {"b": 2, "a": 1}, "radius": 2.0}),
        ({"radius": 2}, {"radius": 2.0}),
        ({"table": {"a": 1}}, {"table": {"a": 1.0}}),
    ],
)
def test_equal_components_have_one_hash(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = (Component.parse(shapes, {"name": "round", **options}) for options in (one, other))
    assert first == second
    assert hash(first) == hash(second)
    assert len({first, second}) == 1


# patterns


@given(st.lists(st.tuples(st.sampled_from(["round", "square"]), st.integers(1, 4)), min_size=1, max_size=5))
def test_a_pattern_repeats_over_the_layers(items: list[tuple[str, int]]) -> None:
    pattern = Pattern.parse(shapes, [f"{name}*{count}" for name, count in items])
    flat = [name for name, count in items for _ in range(count)]
    assert [pattern.at(layer).name for layer in range(3 * len(flat))] == flat * 3
    assert Pattern.parse(shapes, pattern.dump()) == pattern


def test_ways_to_write_a_pattern() -> None:
    one = Pattern((Component(shapes, "round"),))
    table = {"name": "square", "side": 2}
    assert Pattern.parse(shapes, "round") == one
    assert Pattern.parse(shapes, Component(shapes, "round")) == one
    assert Pattern.parse(shapes, one) == one
    assert Pattern.parse(shapes, "round*2") == Pattern(one.components * 2)
    mixed = Pattern.parse(shapes, ["round", table])
    assert [component.dump() for component in mixed.components] == ["round", table]
    assert mixed.dump() == ["round", table]
    assert Pattern.parse(shapes, table).dump() == table


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a pattern of shapes needs at least one name"),
        (["round", "squre"], "unknown shape 'squre'; nearest: square"),
        ("rond*3", "unknown shape 'rond'; nearest: round"),
        ("round*0", "'round*0' repeats the shape zero times; leave it out"),
        (["square", "round*00"], "'round*00' repeats the shape zero times; leave it out"),
        ("round*-1", "unknown shape 'round*-1'; nearest: round"),
        (["round", 3], "a shape is a name, or a table with 'name' and its options, not 3"),
    ],
)
def test_what_is_not_a_pattern(value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Pattern.parse(shapes, value)
    assert str(caught.value) == message


# slots of a configuration


def test_fields_hold_what_was_parsed() -> None:
    picture = Picture.parse({"shape": {"name": "round", "radius": 2}, "row": ["round*2", "square"]})
    assert picture.shape == Component(shapes, "round", {"radius": 2.0})
    assert [component.name for component in picture.row.components] == ["round", "round", "square"]
    assert Picture.parse({}).row.at(17).name == "round"


def test_configurations_dump_to_plain_data_and_parse_back() -> None:
    data = {"shape": {"name": "round", "radius": 2.0}, "row": ["round", "round", "square"]}
    picture = Picture.parse(data)
    assert picture.dump() == data
    again = Picture.parse(picture.dump())
    assert again == picture
    assert hash(again) == hash(picture)
    assert Picture.parse({}).dump() == {"shape": "square", "row": "round"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"shape": "rond"}, "shape: unknown shape 'rond'; nearest: round"),
        ({"shape": {"name": "round", "radus": 1}}, "shape: shape 'round' has no option 'radus'; nearest: radius"),
        ({"row": ["round", "squre"]}, "row: unknown shape 'squre'; nearest: square"),
        ({"row": []}, "row: a pattern of shapes needs at least one name"),
        (
            {"shape": "{x}"},
            "shape: unknown shape '{x}'; known: round, square",
        ),
    ],
)
def test_a_wrong_slot_names_the_field(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Picture.parse(data)
    assert str(caught.value) == message


def test_a_table_without_a_name_sets_options_of_the_default() -> None:
    sketch = Sketch.parse({"shape": {"radius": 3}, "row": {"side": 2}})
    assert sketch.shape == Component(shapes, "round", {"radius": 3.0})
    assert sketch.row == Pattern((Component(shapes, "square", {"side": 2}),))
    named = Sketch.parse({"shape": {"name": "square", "side": 3}, "row": "round"})
    assert named.dump() == {"shape": {"name": "square", "side": 3}, "row": "round"}
    with pytest.raises(UserError, match=r"^shape: shape 'round' has no option 'side'; nearest: size$"):
        Sketch.parse({"shape": {"side": 3}, "row": "round"})
    with pytest.raises(UserError, match=r"^shape: a shape is a name, or a table with 'name'"):
        Picture.parse({"shape": {"radius": 3}})
