"""Where a run's weights start from.

A start is constructed with ``(seed)``, the run's, which raises ``UserError`` if there is nothing to start from. It is
called with the freshly initialised objective and optimizer, and says how many batches of the data are behind it::

    @starts.register("checkpoint")
    class FromCheckpoint:
        def __init__(self, seed: int, *, run: str) -> None: ...
        def __call__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int: ...
        def identity(self) -> Any: ...
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from assay.registry import Registry


class Start(Protocol):
    def __call__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Change weights, and the optimizer's state, in place; return the number of the first batch to read."""
        ...

    def identity(self) -> Any:
        """What tells this start from others, wherever its files lie; it is part of the run's id."""
        ...


starts: Registry[Start] = Registry("start", __name__)
