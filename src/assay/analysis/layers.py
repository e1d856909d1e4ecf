"""What the layers of a transformers model put out, seen or changed while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from assay.errors import UserError


@contextmanager
def at_layers(
    model: PreTrainedModel, act: Callable[[int, Float[Tensor, "batch time hidden"]], Tensor | None]
) -> Iterator[None]:
    """While it lasts, ``act`` gets each layer's index and output in each pass; what it returns takes its place.

    Raises ``UserError`` if the model has no list of its layers, or they give no state per token.
    """
    depth = getattr(model.config, "num_hidden_layers", None)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if not lists:
        raise UserError(f"{type(model).__name__} has no list of {depth} layers to look into")

    def hook(layer: int) -> Callable[..., Any]:
        def run(module: nn.Module, inputs: Any, output: Any) -> Any:
            state = output[0] if isinstance(output, tuple) else output
            if not isinstance(state, Tensor) or state.dim() != 3:
                raise UserError(f"layer {layer} of {type(model).__name__} gives no single state per token")
            changed = act(layer, state)
            if changed is None:
                return None
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return run

    hooks = [layer.register_forward_hook(hook(index)) for index, layer in enumerate(lists[0])]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
