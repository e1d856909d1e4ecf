"""A stopping rule without validation data: the spread of each layer's output, rounded, has stopped changing.

    αₙᵗ = std of all elements of layer n's output at iteration t
    μₙᵉ = round(mean of αₙᵗ over the iterations of epoch e, q decimals)
    stop after epoch e ≥ r, counted from 0, if μₙ is the same in epochs e − r + 1 .. e for every n

q = 2 and r = 5. Rounding is absolute: the rule depends on the scale of the activations.
Ahmad, Trahan, Islam, 2024, arXiv:2403.02473.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from assay.errors import UserError


def stop_epoch(means: Sequence[Sequence[float]], *, decimals: int = 2, epochs: int = 5) -> int | None:
    """The first epoch, from 0, after which the rule stops; ``None`` if it does not.

    Args:
        means: each epoch's mean spreads, one for each layer, not rounded yet.
        decimals: q, how many of them count.
        epochs: r, over how many epochs nothing may change.

    Raises ``UserError`` for fewer than 2 epochs or 0 decimals, and for rows of unequal lengths or without numbers.
    """
    if epochs < 2 or decimals < 0:
        raise UserError(f"epochs={epochs}, decimals={decimals}; they are at least 2 and 0")
    if len({len(row) for row in means}) > 1 or not all(means):
        raise UserError("every epoch has the same number of layers, at least one")
    try:
        rounded = [[round(value * 10**decimals) for value in row] for row in means]
    except (ValueError, OverflowError):
        raise UserError("a spread is not finite") from None
    return next((e for e in range(epochs, len(rounded)) if _same(rounded[e - epochs + 1 : e + 1])), None)


def _same(rows: Sequence[Sequence[int]]) -> bool:
    return all(row == rows[0] for row in rows)


class StopLearning:
    """Watches layers of a network in training::

        with StopLearning(network.blocks) as rule:
            for epoch in range(200):
                train_one_epoch(network)
                if rule.end_epoch():
                    break

    It reads outputs in training mode and changes nothing. ``means`` has a row per epoch, and is all there is to save
    at an epoch's end for a training that is to go on. Raises ``UserError`` without layers.
    """

    def __init__(self, layers: Iterable[nn.Module], *, decimals: int = 2, epochs: int = 5) -> None:
        self.layers = list(layers)
        if not self.layers:
            raise UserError("no layer to watch; give at least one module")
        stop_epoch([], decimals=decimals, epochs=epochs)
        self.decimals, self.epochs = decimals, epochs
        self.means: list[list[float]] = []
        self._sums: list[Tensor | None] = [None] * len(self.layers)
        self._counts = [0] * len(self.layers)
        self._handles = [
            layer.register_forward_hook(lambda module, inputs, output, index=index: self._note(index, module, output))
            for index, layer in enumerate(self.layers)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _note(self, index: int, module: nn.Module, output: Any) -> None:
        if not module.training:
            return
        if not isinstance(output, Tensor) or output.numel() < 2:
            raise UserError(
                f"{type(module).__name__} gives no tensor of several numbers, whose spread could be taken"
            )
        spread = output.float().std().double()
        before = self._sums[index]
        self._sums[index] = spread if before is None else before + spread
        self._counts[index] += 1

    def end_epoch(self) -> bool:
        """Whether to stop after this epoch. Raises ``UserError`` if a layer was not called since the last one."""
        row = []
        for layer, total, count in zip(self.layers, self._sums, self._counts, strict=True):
            if total is None:
                raise UserError(f"{type(layer).__name__} was not called in training mode in this epoch")
            row.append(total.item() / count)
        self.means.append(row)
        self._sums, self._counts = [None] * len(self.layers), [0] * len(self.layers)
        return stop_epoch(self.means, decimals=self.decimals, epochs=self.epochs) is not None
