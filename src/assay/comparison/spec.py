"""What is compared: arms, seeds, budget, tuning, and the configuration that all arms share.

arms = ["baseline", "seednorm", "peri-ln+gated-attention", "wide"]
seeds = 3
tokens = "250k"
tune = { lr = [0.5, 1, 2] }

[run]                      # for every arm; the fields of a run's configuration
model.depth = 4

[patches.wide]             # an arm of your own, by dotted fields or tables
model.hidden_size = 512
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from assay.catalog.techniques import Arm, parse_arm
from assay.config import Config, assign, flatten, parse_assignment
from assay.errors import UserError
from assay.quantities import Amount, Count, Seconds
from assay.training.config import RunConfig

TUNING_SEED = 1_000_000
"""Tuning runs count their seeds from here, which a comparison's own seeds never reach."""


def _seed_list(value: Any) -> Any:
    """A number n of seeds as 0 .. n − 1; a list as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise UserError(f"a comparison needs at least one seed, not {value}")
        return list(range(value))
    return value


class ComparisonSpec(Config):
    """The first arm is the one that the others are compared with."""

    arms: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=TUNING_SEED)]], BeforeValidator(_seed_list)] = Field(
        default=[0, 1, 2], min_length=1
    )
    tokens: Count | None = None
    flops: Amount | None = None
    seconds: Seconds | None = None
    tune: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(default_factory=dict)]
    tune_seeds: Count = 1
    run: Annotated[dict[str, Any], Field(default_factory=dict)]
    patches: Annotated[dict[str, dict[str, Any]], Field(default_factory=dict)]
    title: str | None = None

    @field_validator("arms", "seeds")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        twice = [value for index, value in enumerate(values) if value in values[:index]]
        if twice:
            raise ValueError(f"{twice[0]!r} is given twice")
        return values

    @property
    def budget(self) -> dict[str, Any]:
        """The budget that is set here, as fields of a run's ``training`` table."""
        given = {"tokens": self.tokens, "flops": self.flops, "seconds": self.seconds}
        return {f"training.{name}": value for name, value in given.items() if value is not None}

    @property
    def heading(self) -> str:
        """The title, or what is compared with what."""
        others = ", ".join(self.arms[1:])
        return self.title or (f"{others} against {self.arms[0]}" if others else self.arms[0])

    def arm(self, name: str) -> Arm:
        """An arm of the user's own, or techniques of the catalogue."""
        if name in self.patches:
            return Arm(name, (), flatten(self.patches[name]))
        return parse_arm(name)

    def config(self, arm: Arm, seed: int = 0, settings: Mapping[str, Any] | None = None) -> RunConfig:
        """The configuration of one run. ``settings`` are values that tuning tries, or has chosen.

        Raises ``UserError`` naming the arm if its configuration is not valid.
        """
        values = assign(assign(assign(self.run, self.budget), arm.patch), {"seed": seed})
        try:
            config = RunConfig.parse(values)
            if settings:
                absolute = {field: value for field, value in settings.items() if field != "lr"}
                if "lr" in settings:
                    absolute["optimizer.lr"] = config.optimizer.options["lr"] * settings["lr"]
                config = RunConfig.parse(assign(values, absolute))
        except UserError as error:
            raise UserError(f"arm {arm.name!r}: {error}" if arm.patch else str(error)) from None
        return config

    def candidates(self) -> list[dict[str, Any]]:
        """All combinations of the values that tuning tries; one empty combination without tuning.

        Values of ``lr`` are factors of each arm's own learning rate, those of other (dotted) fields are absolute.
        """
        return [dict(zip(self.tune, values, strict=True)) for values in itertools.product(*self.tune.values())]


def parse_tune(texts: Iterable[str]) -> dict[str, list[Any]]:
    """``["lr=0.5,1,2"]`` as ``{"lr": [0.5, 1, 2]}``. Raises ``UserError`` for anything of another form."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        field, _, values = text.partition("=")
        items = [item for item in values.split(",") if item.strip()]
        if not field.strip() or not items:
            raise UserError(f"--tune {text!r} is not of the form FIELD=VALUE,VALUE,..., for example lr=0.5,1,2")
        found[field.strip()] = [parse_assignment(f"x={item}")[1] for item in items]
        if field.strip() == "lr":
            for value in found["lr"]:
                if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                    raise UserError(f"--tune lr takes factors of the learning rate above 0, not {value!r}")
    return found
