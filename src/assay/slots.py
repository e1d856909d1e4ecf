"""Slots of a configuration: a component's name, or its name with options.

    norm = "seednorm"
    norm = { name = "seednorm", num_heads = 4 }
    mixer = ["gated-attention*3", "softmax"]

A list is a pattern, repeated over the depth.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

from assay.errors import UserError
from assay.registry import Registry

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Component(Generic[T]):
    """A named component of one registry, with its own options (already checked)."""

    registry: Registry[T]
    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, registry: Registry[T], value: Any) -> Component[T]:
        """Raises ``UserError`` for an unknown name or a wrong option."""
        if isinstance(value, Component) and value.registry is registry:
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise UserError(f"a {registry.kind} is a name, or a table with 'name' and its options, not {value!r}")
        options = {key: option for key, option in value.items() if key != "name"}
        return cls(registry, value["name"], registry.validate(value["name"], options))

    def build(self, **context: Any) -> T:
        return self.registry.build(self.name, self.options, **context)

    def dump(self) -> str | dict[str, Any]:
        """The shortest value that parses to this component."""
        return {"name": self.name, **self.options} if self.options else self.name

    def __hash__(self) -> int:
        return hash((self.registry.kind, self.name, tuple(sorted(self.options))))


@dataclasses.dataclass(frozen=True)
class Pattern(Generic[T]):
    """Components that take turns over the layers, cyclically."""

    components: tuple[Component[T], ...]

    @classmethod
    def parse(cls, registry: Registry[T], value: Any) -> Pattern[T]:
        """Raises ``UserError`` for an empty pattern and where ``Component.parse`` does."""
        if isinstance(value, Pattern):
            value = value.components
        items = value if isinstance(value, list | tuple) else [value]
        if not items:
            raise UserError(f"a pattern of {registry.kind}s needs at least one name")
        components: list[Component[T]] = []
        for item in items:
            repeated = re.fullmatch(r"(.+)\*(\d+)", item) if isinstance(item, str) else None
            name, count = (repeated[1], int(repeated[2])) if repeated else (item, 1)
            if count == 0:
                raise UserError(f"{item!r} repeats the {registry.kind} zero times; leave it out")
            components += [Component.parse(registry, name)] * count
        return cls(tuple(components))

    def at(self, layer: int) -> Component[T]:
        return self.components[layer % len(self.components)]

    def dump(self) -> Any:
        dumped = [component.dump() for component in self.components]
        return dumped[0] if len(dumped) == 1 else dumped


class In:
    """``Annotated[Component, In(norms)]``: a field that holds one component of that registry.

    With ``pattern=True`` the field holds a ``Pattern`` over the layers. A table without a name sets options of the
    ``default`` component, as in ``optimizer.lr = 1e-3``.
    """

    def __init__(self, registry: Registry[Any], *, default: str | None = None, pattern: bool = False) -> None:
        self.registry = registry
        self.default = default
        self.form: Any = Pattern if pattern else Component

    def _validate(self, value: Any) -> Any:
        if self.default is not None and isinstance(value, Mapping) and "name" not in value:
            value = {"name": self.default, **value}
        try:
            return self.form.parse(self.registry, value)
        except UserError as error:
            raise PydanticCustomError("component", "{reason}", {"reason": str(error)}) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.dump()),
        )
