"""Slots written ``name:argument``: ``text:notes.txt`` for ``{name = "text", path = "notes.txt"}``.

A component that can be written so declares which of its options the argument is::

    class TextCorpus(Corpus):
        argument = "path"
        def __init__(self, *, path: str) -> None: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from assay.errors import UserError
from assay.registry import Registry
from assay.slots import Component


def expand(registry: Registry[Any]) -> Callable[[Any], Any]:
    """A validator, to run before that of the slot, which writes ``name:argument`` out as a table.

    It raises ``UserError`` for an unknown name, and for an argument that is missing or not taken.
    """

    def validate(value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            return value
        name, colon, argument = value["name"].partition(":")
        options = {key: option for key, option in value.items() if key != "name"}
        try:
            constructor = registry[name]
        except UserError as error:
            raise UserError(
                f"{error} (they are written {', '.join(_form(registry, known) for known in registry)})"
            ) from None
        target = getattr(constructor, "argument", None)
        if argument:
            if target is None:
                raise UserError(f"{registry.kind} {name!r} takes no argument: write {name!r}")
            options = {target: argument, **options}
        required = target and inspect.signature(constructor).parameters[target].default is inspect.Parameter.empty
        if target and target not in options and (colon or required):
            raise UserError(f"{registry.kind} {name!r} needs its {target}: write '{name}:{target.upper()}'")
        return {"name": name, **options}

    return validate


def component(registry: Registry[Any], value: Any) -> Component[Any]:
    """What a name, ``name:argument`` or a table stands for. Raises ``UserError`` for what is none of the registry."""
    return Component.parse(registry, expand(registry)(value))


def plain(registry: Registry[Any]) -> Callable[[Any], Any]:
    """A validator of an option that holds a component of ``registry``: what checks out stays a name or a table."""

    def validate(value: Any) -> Any:
        try:
            return component(registry, value).dump()
        except UserError as error:
            raise PydanticCustomError("component", "{reason}", {"reason": str(error)}) from None

    return validate


def _form(registry: Registry[Any], name: str) -> str:
    target = getattr(registry[name], "argument", None)
    return f"{name}:{target.upper()}" if target else name
