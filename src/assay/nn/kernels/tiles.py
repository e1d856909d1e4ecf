"""How rows of features are cut up: tiles that a program holds at once, programs that fill the device."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

FEATURES = 2048
"""Of a tile, if its rows are shorter."""

INTERPRETED = 3
"""Programs of a backward pass in the interpreter: enough to add up."""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles of ``height`` rows by ``width`` features, a power of two each; ``warps`` of 32 threads do one."""

    count: int
    height: int
    width: int

    @classmethod
    def of(cls, rows: int, width: int) -> Tiles:
        """``width`` is rounded up to a power of two."""
        width = power_of_two(width)
        height = max(1, FEATURES // width)
        return cls(-(-rows // height), height, width)

    @property
    def warps(self) -> int:
        """One for every 256 features, from 4 to 16."""
        return min(16, max(4, self.height * self.width // 256))

    def programs(self, device: torch.device) -> int:
        """That share the tiles of a backward pass: 32 warps for each processor."""
        if device.type != "cuda":
            return min(self.count, INTERPRETED)
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        return min(self.count, processors * 32 // self.warps)


def power_of_two(number: int) -> int:
    """The least one that is not below ``number``, from 1 on."""
    return 1 << (number - 1).bit_length()


def rows_of(x: Float[Tensor, "*batch size"]) -> Float[Tensor, "rows size"]:
    """``x`` as a matrix, its features next to one another in memory; a copy only where it must be."""
    matrix = x.reshape(-1, x.shape[-1])
    return matrix if matrix.stride(-1) == 1 else matrix.contiguous()
