from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from assay.errors import UserError
from assay.registry import Registry


class Widget:
    """A component: two parameters of its surroundings, three options."""

    def __init__(
        self,
        size: int,
        layer: int = 7,
        *,
        rate: float = 0.5,
        mode: Literal["Fast", "Slow"] = "Fast",
        bound: float | Literal["none"] = "none",
    ) -> None:
        self.arguments = {"size": size, "layer": layer, "rate": rate, "mode": mode, "bound": bound}


@pytest.fixture
def widgets() -> Registry[Any]:
    registry: Registry[Any] = Registry("widget")
    registry.register("plain")(Widget)
    return registry


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """``package(module="source", ...)`` writes an importable package ``shelf`` and gives its name."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def write(**modules: str) -> str:
        folder = tmp_path / "shelf"
        folder.mkdir()
        init = "from assay.registry import Registry\nthings = Registry('thing', __name__)\n"
        (folder / "__init__.py").write_text(init)
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source)
        return "shelf"

    yield write
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "shelf":
            del sys.modules[name]


THING = """
from shelf import things

@things.register({name!r})
class Thing:
    def __init__(self, *, width: int = 1) -> None:
        self.width = width
"""


# names


def test_register_returns_the_constructor_unchanged(widgets: Registry[Any]) -> None:
    assert widgets.register("again")(Widget) is Widget
    assert widgets["plain"] is widgets["again"] is Widget
    assert list(widgets) == widgets.names() == ["again", "plain"]
    assert "plain" in widgets
    assert "other" not in widgets


def test_a_name_is_given_once(widgets: Registry[Any]) -> None:
    class Other:
        pass

    with pytest.raises(ValueError, match=r"widget 'plain' is registered twice: .*Widget.* and .*Other"):
        widgets.register("plain")(Other)
    assert widgets["plain"] is Widget
    assert widgets.register("plain")(Widget) is Widget


def test_an_unknown_name_answers_with_the_nearest(widgets: Registry[Any]) -> None:
    for look_up in (
        lambda: widgets["plan"],
        lambda: widgets.build("plan", size=1),
        lambda: widgets.validate("plan", {}),
    ):
        with pytest.raises(UserError) as caught:
            look_up()
        assert str(caught.value) == "unknown widget 'plan'; nearest: plain"


def test_an_empty_registry() -> None:
    with pytest.raises(UserError, match="unknown widget 'plan'; none are known"):
        Registry("widget")["plan"]


# options and context


def test_context_is_chosen_by_name_and_the_rest_of_it_left(widgets: Registry[Any]) -> None:
    widget = widgets.build("plain", size=3, colour="red")
    assert widget.arguments == {"size": 3, "layer": 7, "rate": 0.5, "mode": "Fast", "bound": "none"}
    assert widgets.build("plain", size=3, layer=1).arguments["layer"] == 1


def test_an_option_wins_over_the_context(widgets: Registry[Any]) -> None:
    assert widgets.build("plain", {"size": 9}, size=3).arguments["size"] == 9


def test_context_never_sets_a_components_own_option(widgets: Registry[Any]) -> None:
    assert widgets.build("plain", size=3, rate=99.0).arguments["rate"] == 0.5


def test_a_parameter_that_nothing_supplies(widgets: Registry[Any]) -> None:
    with pytest.raises(TypeError, match=r"widget 'plain' asks for 'size', .* supplied: colour, layer"):
        widgets.build("plain", layer=1, colour="red")


def test_options_are_converted_by_the_annotations(widgets: Registry[Any]) -> None:
    checked = widgets.validate("plain", {"rate": "0.25", "size": 4.0, "bound": 2})
    assert checked == {"rate": 0.25, "size": 4, "bound": 2.0}
    assert [type(checked[name]) for name in ("rate", "size", "bound")] == [float, int, float]
    assert widgets.validate("plain", {}) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rat": 1}, "widget 'plain' has no option 'rat'; nearest: rate"),
        ({"xyz": 1}, "widget 'plain' has no option 'xyz'; known: bound, layer, mode, rate, size"),
        (
            {"rate": "quick"},
            "widget 'plain', option rate='quick': input should be a valid number, unable to parse string as a number",
        ),
        ({"mode": "fast"}, "widget 'plain', option mode='fast': input should be 'Fast' or 'Slow'"),
        (
            {"bound": "all"},
            "widget 'plain', option bound='all': input should be a valid number, "
            "unable to parse string as a number, or input should be 'none'",
        ),
        (
            {"size": 2.5, "rate": 1.0},
            "widget 'plain', option size=2.5: input should be a valid integer, got a number with a fractional part",
        ),
    ],
)
def test_a_wrong_option_in_one_line(widgets: Registry[Any], options: dict[str, Any], message: str) -> None:
    for check in (
        lambda: widgets.validate("plain", options),
        lambda: widgets.build("plain", options, size=1),
    ):
        with pytest.raises(UserError) as caught:
            check()
        assert str(caught.value) == message


def test_an_option_without_a_default_must_be_given(widgets: Registry[Any]) -> None:
    @widgets.register("ranked")
    def ranked(size: int, *, rank: int) -> tuple[int, int]:
        return size, rank

    assert widgets.build("ranked", {"rank": "2"}, size=1) == (1, 2)
    with pytest.raises(UserError, match=r"^widget 'ranked' needs the option 'rank'$"):
        widgets.build("ranked", size=1, rank=2)


def test_a_component_without_parameters(widgets: Registry[Any]) -> None:
    @widgets.register("bare")
    class Bare:
        pass

    assert isinstance(widgets.build("bare", size=3), Bare)
    with pytest.raises(UserError, match="widget 'bare' has no option 'size'; none are known"):
        widgets.build("bare", {"size": 3})


# modules of the package


def test_modules_are_imported_when_a_name_is_first_looked_up(package: Callable[..., str]) -> None:
    package(one=THING.format(name="one"), two=THING.format(name="two"))
    from shelf import things  # type: ignore[import-not-found]

    assert "shelf.one" not in sys.modules
    assert things.names() == ["one", "two"]
    assert things.build("two", {"width": 5}).width == 5


def test_a_module_that_fails_is_not_forgotten(package: Callable[..., str]) -> None:
    package(a=THING.format(name="a"), b="import missing_dependency\n")
    from shelf import things

    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="missing_dependency"):
            things.names()


class Gadget(Widget):
    """One that has a ``Widget``'s options but ``rate``, of another default, and all of its context."""

    def __init__(self, *context: Any, rate: Literal[1, 2] = 2, extra: int = 0, **options: Any) -> None:
        super().__init__(*context, rate=rate, **options)
        self.extra = extra


class Closed(Widget):
    """One that takes options of a ``Widget``, but nothing else of its context."""

    def __init__(self, size: int, own: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(size, **options)


class TestInheritedOptions:
    def test_a_class_has_the_options_that_it_passes_on(self, widgets: Registry[Any]) -> None:
        widgets.register("gadget")(Gadget)
        built = widgets.build("gadget", {"mode": "Slow", "extra": 3}, size=5, layer=1)
        assert built.arguments == {"size": 5, "layer": 1, "rate": 2, "mode": "Slow", "bound": "none"}
        assert built.extra == 3
        assert widgets.build("gadget", {"size": 8}, size=5).arguments["size"] == 8

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"rate": 0.5}, "rate=0.5"),
            ({"mode": "Slw"}, "mode='Slw'"),
            ({"colour": 1}, "no option 'colour'"),
            ({"context": 1}, "no option 'context'"),
            ({"options": 1}, "no option 'options'"),
        ],
    )
    def test_its_own_word_comes_first_and_nothing_else_gets_through(
        self, widgets: Registry[Any], options: dict[str, Any], says: str
    ) -> None:
        widgets.register("gadget")(Gadget)
        with pytest.raises(UserError, match=says):
            widgets.validate("gadget", options)

    def test_context_is_passed_on_only_where_it_is_taken(self, widgets: Registry[Any]) -> None:
        widgets.register("closed")(Closed)
        built = widgets.build("closed", {"rate": 0.1}, size=5, layer=1)
        assert (built.arguments["layer"], built.arguments["rate"]) == (7, 0.1)
        with pytest.raises(UserError, match="no option 'layer'"):
            widgets.validate("closed", {"layer": 3})
