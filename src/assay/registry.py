"""Components by name.

A package of components owns one registry::

    norms: Registry[nn.Module] = Registry("norm", __name__)

and each module of that package registers what it defines::

    @norms.register("seednorm")
    class SeeDNorm(nn.Module):
        def __init__(self, hidden_size: int, *, num_heads: int = 1) -> None: ...

The modules of the package are imported when a name is first looked up, so a new component is a new file and
nothing else. Other distributions add components through the entry point group ``assay.<kind>``; each is
loaded when its own name is looked up, and a built-in component of the same name comes first.

Parameters before the ``*`` are supplied by whatever assembles the network (``hidden_size``, ``num_heads``,
``lr``, ...), chosen by name; parameters after it are the component's own options. A user may set either, as long
as the former are plain numbers or strings. A class that takes ``**options``, and passes them on to the class it
extends, has that one's options too; with ``*context`` it is supplied what that one asks for.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

import pydantic

from assay.errors import AssayError, UserError, nearest, unknown

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Constructors of one kind of component, by name.

    ``kind`` is the singular that messages use and the entry point group's suffix (``assay.<kind>``);
    ``packages`` are those whose modules register the built-in ones.
    """

    def __init__(self, kind: str, *packages: str) -> None:
        self.kind = kind
        self.packages = packages
        self._constructors: dict[str, Callable[..., T]] = {}
        self._entry_points: dict[str, EntryPoint] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[C], C]:
        """Class or function decorator. Raises ``ValueError`` if the name is taken."""

        def add(constructor: C) -> C:
            taken = self._constructors.get(name)
            if taken is not None and taken is not constructor:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {taken} and {constructor}")
            self._constructors[name] = constructor
            return constructor

        return add

    def names(self) -> list[str]:
        self._discover()
        return sorted({*self._constructors, *self._entry_points})

    def __deepcopy__(self, memo: dict[int, Any]) -> Registry[T]:
        """A registry is one thing wherever a configuration that points to it is copied."""
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: str) -> bool:
        self._discover()
        return name in self._constructors or name in self._entry_points

    def __getitem__(self, name: str) -> Callable[..., T]:
        """The constructor.

        Raises ``UserError`` with the nearest names; ``AssayError`` if another distribution's fails to load.
        """
        self._discover()
        if name not in self._constructors:
            if name not in self._entry_points:
                raise unknown(self.kind, name, self.names())
            self._constructors[name] = self._load(self._entry_points[name])
        return self._constructors[name]

    def validate(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """``options`` checked against, and converted by, the constructor's annotations.

        Raises ``UserError`` naming the option, its value and what would do.
        """
        model = _options_model(self[name])
        for option in options:
            if option not in model.model_fields:
                known = sorted(model.model_fields)
                raise UserError(f"{self.kind} {name!r} has no option {option!r}; {nearest(option, known)}")
        try:
            checked = model.model_validate(options)
        except pydantic.ValidationError as error:
            mistakes = error.errors()
            option = str(mistakes[0]["loc"][0])
            if option not in options:
                raise UserError(f"{self.kind} {name!r} needs the option {option!r}") from None
            reasons = [m["msg"][0].lower() + m["msg"][1:] for m in mistakes if m["loc"][0] == option]
            raise UserError(
                f"{self.kind} {name!r}, option {option}={options[option]!r}: {', or '.join(reasons)}"
            ) from None
        return {option: getattr(checked, option) for option in options}

    def build(self, name: str, options: Mapping[str, Any] | None = None, **context: Any) -> T:
        """Construct the component from its options and those context values that it asks for by name."""
        constructor = self[name]
        arguments = self.validate(name, options or {})
        for parameter, _ in _parameters(constructor).values():
            if parameter.name in arguments or parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                continue
            if parameter.name in context:
                arguments[parameter.name] = context[parameter.name]
            elif parameter.default is inspect.Parameter.empty:
                raise TypeError(
                    f"{self.kind} {name!r} asks for {parameter.name!r}, which is not supplied here; "
                    f"supplied: {', '.join(sorted(context))}"
                )
        return constructor(**arguments)

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        try:
            for name in self.packages:
                for module in pkgutil.iter_modules(importlib.import_module(name).__path__):
                    importlib.import_module(f"{name}.{module.name}")
        except BaseException:
            self._discovered = False
            raise
        self._entry_points = {point.name: point for point in entry_points(group=f"assay.{self.kind}")}

    def _load(self, point: EntryPoint) -> Callable[..., T]:
        try:
            return point.load()
        except Exception as error:
            owner = f" of {point.dist.name}" if point.dist else ""
            raise AssayError(
                f"{self.kind} {point.name!r}{owner} cannot be loaded from {point.value}: "
                f"{type(error).__name__}: {error}"
            ) from error


def _initializers(constructor: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A function itself; of a class ``__init__``, and while one has ``**options`` that of the class it extends."""
    if not inspect.isclass(constructor):
        yield constructor
        return
    for initializer in (
        vars(owner)["__init__"] for owner in inspect.getmro(constructor) if "__init__" in vars(owner)
    ):
        yield initializer
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(initializer).parameters.values()):
            return


def _parameters(constructor: Callable[..., Any]) -> dict[str, tuple[inspect.Parameter, Any]]:
    """By name, each with its annotation. What a class says of one comes before what the class it extends says."""
    found: dict[str, tuple[inspect.Parameter, Any]] = {}
    all_are_passed_on = True
    for initializer in _initializers(constructor):
        hints = typing.get_type_hints(initializer, include_extras=True)
        parameters = [*inspect.signature(initializer).parameters.values()]
        if inspect.isclass(constructor):
            del parameters[0]
        for parameter in parameters:
            named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if named and (all_are_passed_on or parameter.kind is parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, (parameter, hints.get(parameter.name, Any)))
        all_are_passed_on &= any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return found


@functools.cache
def _options_model(constructor: Callable[..., Any]) -> type[pydantic.BaseModel]:
    fields: dict[str, Any] = {}
    for parameter, hint in _parameters(constructor).values():
        keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if not keyword_only and hint not in (int, float, str, bool):
            continue
        required = keyword_only and parameter.default is inspect.Parameter.empty
        default = ... if required else parameter.default if keyword_only else None
        fields[parameter.name] = (hint, default)
    config = pydantic.ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())
    return pydantic.create_model(f"{constructor.__name__}Options", __config__=config, **fields)
