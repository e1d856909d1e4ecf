"""No transfer: rate and decay are those of this width, and the same for all parameters."""

from __future__ import annotations

from torch import nn

from assay.optim.groups import ParameterGroup, parameter_groups
from assay.optim.registries import transfers


@transfers.register("none")
class NoTransfer:
    def __init__(self, hidden_size: int) -> None:
        self.width = hidden_size

    def initialize(self, model: nn.Module) -> None:
        pass

    def groups(self, model: nn.Module) -> list[ParameterGroup]:
        return parameter_groups(model)
