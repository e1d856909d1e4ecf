"""The residual stream of a decoder as it grows over the layers, for properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.models import Decoder

T = TypeVar("T")


@torch.no_grad()
def after_each_layer(
    model: Decoder, ids: Int[Tensor, "batch time"], reduce: Callable[[Float[Tensor, "batch time hidden"]], T]
) -> list[T]:
    """``reduce`` of what the head would read (before its norm) after each layer, in one forward pass."""
    found: list[T] = []

    def keep(layer: Any, inputs: Any, state: Any) -> None:
        found.append(reduce(model.residual.finish(state).double()))

    hooks = [layer.register_forward_hook(keep) for layer in model.layers]
    try:
        model.hidden(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found
