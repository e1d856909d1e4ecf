"""A property: quantities computed on the model of every run of some arms, trained or fresh."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from assay.claims.arms import Arms, budget, summary
from assay.claims.properties import properties
from assay.claims.ways import Measured, Work, fingerprint, ways
from assay.data.windows import prepare
from assay.files import write_json
from assay.models import Decoder
from assay.models.initialization import initialize
from assay.slots import Component, In
from assay.training.config import RunConfig
from assay.training.export import load


@ways.register("property")
class Property:
    """``property`` is a function of ``assay.claims.properties``, by name or with its options.

    Its quantities are called ``ARM.QUANTITY`` in ``expect``. With ``trained = false`` the models are as they were
    initialised. ``text`` tokens of the validation text are what a property may run the model on.
    """

    exact = False

    def __init__(
        self,
        *,
        property: Annotated[Component[dict[str, float]], In(properties)],
        arms: list[str],
        expect: dict[str, str],
        trained: bool = True,
        text: int = 4096,
        tokens: int | str,
        seeds: int,
        tune: dict[str, list[Any]] = {},  # noqa: B006  (read only)
        run: dict[str, Any],
        patches: dict[str, dict[str, Any]] = {},  # noqa: B006  (read only)
    ) -> None:
        self.property, self.trained, self.text = property, trained, text
        self.arms = Arms(arms, tokens=tokens, seeds=seeds, tune=tune, run=run, patches=patches)
        self.expect: Mapping[str, str] = expect

    def measure(self, work: Work) -> Measured:
        values: dict[str, dict[int, float | None]] = {}
        spec, details, spent = self.arms.spec, {}, {}
        if self.trained:
            result = self.arms.train(work)
            details, spent = summary(result), budget(result)
            paths = self.arms.runs(work, result)
        for name in spec.arms:
            for seed in spec.seeds:
                if self.trained:
                    path = paths[name][seed]
                    found = None if path is None else self._of_run(path, spec.config(spec.arm(name), seed))
                else:
                    found = self._of_fresh(spec.config(spec.arm(name), seed))
                for quantity, value in (found or {}).items():
                    values.setdefault(f"{name}.{quantity}", {})[seed] = value
        for name_, by_seed in values.items():
            for seed in spec.seeds:
                by_seed.setdefault(seed, None)
            values[name_] = dict(sorted(by_seed.items()))
        return Measured(values, spent, details)

    def _of_run(self, path: Path, config: RunConfig) -> dict[str, float]:
        """Computed once for a run, then kept beside it."""
        kept = path / f"property-{fingerprint([self.property.dump(), self.text])}.json"
        if kept.exists():
            found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
            return found
        model = load(path)
        found = self._compute(model, config)
        write_json(kept, found)
        return found

    def _of_fresh(self, config: RunConfig) -> dict[str, float]:
        config = config.with_vocabulary(prepare(config.data).vocab_size)
        model = Decoder(config.model)
        initialize(model, config.seed, config.model.init_std)
        return self._compute(model, config)

    def _compute(self, model: Any, config: RunConfig) -> dict[str, float]:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        model = model.to(device).eval()
        found = self.property.build(model=model, ids=self._ids(config).to(device), config=config)
        return {name: float(value) for name, value in found.items()}

    def _ids(self, config: RunConfig) -> Tensor:
        data = prepare(config.data)
        length = config.data.sequence_length
        batches = data.evaluation(length, max(1, self.text // length))
        inputs, _ = next(iter(batches))
        return inputs
