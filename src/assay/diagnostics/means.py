"""Running means by layer."""

from __future__ import annotations

from torch import Tensor


class Means:
    """Means over samples, the first dimension of what is added, by name and layer."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], Tensor] = {}
        self._counts: dict[tuple[str, int], int] = {}

    def add(self, name: str, layer: int, samples: Tensor) -> None:
        key = name, layer
        total = samples.double().sum(0) if samples.ndim == 1 else samples.sum(0).double()
        self._sums[key] = self._sums[key] + total if key in self._sums else total
        self._counts[key] = self._counts.get(key, 0) + len(samples)

    def __contains__(self, name: str) -> bool:
        return any(known == name for known, _ in self._sums)

    def of(self, name: str, layer: int) -> Tensor:
        return (self._sums[name, layer] / self._counts[name, layer]).cpu()

    def layers(self, name: str) -> list[int]:
        return sorted(layer for known, layer in self._sums if known == name)

    def by_layer(self, name: str) -> list[Tensor]:
        """The means of the layers that there are, in order."""
        return [self.of(name, layer) for layer in self.layers(name)]

    def numbers(self, name: str) -> list[float]:
        """The same, of means that are numbers."""
        return [mean.item() for mean in self.by_layer(name)]
