"""Configurations: TOML in, checked values out, and one readable line for a mistake."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, get_args

import pydantic
from pydantic import BaseModel, ConfigDict

from assay.errors import UserError, nearest


class Config(BaseModel):
    """Base of all configuration tables: immutable, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """Validate nested plain data. Raises ``UserError`` naming the field, its value and what would do."""
        try:
            return cls.model_validate(data)
        except pydantic.ValidationError as error:
            raise UserError(_line(cls, error)) from None

    def dump(self) -> dict[str, Any]:
        """Plain data that ``parse`` turns back into an equal configuration."""
        return self.model_dump(mode="json")


def _line(model: type[BaseModel], error: pydantic.ValidationError) -> str:
    errors = error.errors()
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        line = f"unknown field {where!r}; {nearest(str(first['loc'][-1]), _siblings(model, first['loc']))}"
    elif first["type"] == "missing":
        line = f"{where} is missing"
    elif first["type"] in ("component", "value_error"):
        reason = first["msg"].removeprefix("Value error, ")
        line = f"{where}: {reason}" if where else reason
    else:
        line = f"{where}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return line + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def _siblings(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        model = (_table_in(field.annotation) if field else None) or model
    return list(model.model_fields)


def _table_in(annotation: Any) -> type[BaseModel] | None:
    """The table that a field holds: itself, optional, or inside a list or dictionary."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_table_in, get_args(annotation))), None)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Raises ``UserError`` if the file cannot be read or is not TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot read configuration {str(path)!r}: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """``"model.depth=6"`` as ``("model.depth", 6)``; what is not a TOML value is taken as a string."""
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator or not key:
        raise UserError(f"{text!r} is not of the form FIELD=VALUE, for example model.depth=6")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value.strip()


def assign(data: Mapping[str, Any], values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A copy of nested ``data`` with dotted fields set, shorter paths first.

    A path into a slot that holds only a name turns the slot into a table: ``model.norm.eps`` on
    ``{"model": {"norm": "seednorm"}}`` gives ``{"name": "seednorm", "eps": ...}``.
    """
    result = copy.deepcopy(dict(data))
    items = values.items() if isinstance(values, Mapping) else values
    for path, value in sorted(items, key=lambda item: item[0].count(".")):
        *parents, last = path.split(".")
        table = result
        for parent in parents:
            inner = table.get(parent, {})
            if isinstance(inner, str):
                inner = {"name": inner}
            if not isinstance(inner, dict):
                raise UserError(f"cannot set {path!r}: {parent!r} holds {inner!r}, not a table")
            table[parent] = inner
            table = inner
        table[last] = copy.deepcopy(value)
    return result


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted fields: the inverse of ``assign`` on an empty table."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
