"""All parameters are trained in every step."""

from __future__ import annotations

from assay.optim.registries import Stateless, selections


@selections.register("all")
class Everything(Stateless):
    changes = False

    def __call__(self, step: int) -> None:
        pass
