"""Where patching takes place: the residual stream before a layer, and what attention and MLP add to it.

The layers are the list of modules that hold an attention module; attention and MLP are found by the names that
decoders give them, and a layer's input is its first tensor.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig

from assay.errors import UserError, unknown

SITES = ("residual", "attention", "mlp")
PATHS = {
    "attention": ("mixer.branch", "self_attn", "attn", "attention", "self_attention"),
    "mlp": ("mlp.branch", "mlp", "feed_forward", "ffn", "block_sparse_moe"),
}
Effects = dict[str, Float[Tensor, "layers time"]]
"""By site: how much of the metric each activation is responsible for."""


Visit = Callable[[str, int, Float[Tensor, "rows time hidden"]], Tensor | None]
"""Called with a site, a layer and its activation; what it returns, unless None, takes the activation's place."""


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """Activations by site and layer, and the logits after the last token."""

    activations: dict[str, list[Float[Tensor, "rows time hidden"]]]
    logits: Float[Tensor, "rows vocab"]

    def of(self, site: str, layer: int) -> Float[Tensor, "rows time hidden"]:
        return self.activations[site][layer]


def layers_of(model: nn.Module) -> nn.ModuleList:
    """Raises ``UserError`` if the model has no list of layers with attention."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) and _find(module[0], "attention") is not None:
            return module
    name = type(model).__name__
    raise UserError(f"{name} has no list of layers with attention; patching needs a transformer decoder")


def check_sites(sites: Iterable[str]) -> None:
    """Raises ``UserError`` for one that is not among ``SITES``."""
    for site in sites:
        if site not in SITES:
            raise unknown("site", site, SITES)


@contextmanager
def visited(model: nn.Module, sites: Iterable[str], visit: Visit) -> Iterator[None]:
    """While it lasts, ``visit`` is called at each of ``sites`` in every layer.

    Raises ``UserError`` for a layer that lacks one of them.
    """
    with ExitStack() as hooks:
        for index, layer in enumerate(layers_of(model)):
            for site in sites:
                if site == "residual":
                    handle = layer.register_forward_pre_hook(_before(visit, index), with_kwargs=True)
                else:
                    handle = _module(layer, site, index).register_forward_hook(_after(visit, site, index))
                hooks.callback(handle.remove)
        yield


@contextmanager
def prepared(model: nn.Module) -> Iterator[None]:
    """While it lasts, the model is in evaluation mode and no parameter takes a gradient."""
    training, wanted = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def skipped(layers: Iterable[nn.Module], returned: Sequence[Any]) -> Iterator[None]:
    """While it lasts, ``layers`` pass on what they get, in the form of what each has ``returned`` before."""
    try:
        for layer, output in zip(layers, returned, strict=True):
            layer.forward = functools.partial(_pass_on, output)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def cache_of(model: nn.Module, ids: Int[Tensor, "rows time"]) -> Cache:
    """Keys and values of ``ids``."""
    cache = DynamicCache(config=cast(PreTrainedConfig, model.config))
    if ids.shape[1] > 0:
        last_logits(model, ids, cache)
    return cache


def outputs_of(model: nn.Module, ids: Int[Tensor, "rows time"]) -> list[Any]:
    """What each layer returns: a tensor or, in some models, a tuple that begins with it."""
    found: list[Any] = []
    with ExitStack() as hooks:
        for layer in layers_of(model):
            handle = layer.register_forward_hook(lambda module, arguments, output: found.append(output))
            hooks.callback(handle.remove)
        last_logits(model, ids)
    return found


def record(model: nn.Module, ids: Int[Tensor, "rows time"], sites: Iterable[str]) -> Recording:
    """What passes ``sites``, and the logits; the tensors belong to the graph where gradients are taken."""
    found: dict[str, list[Tensor]] = {site: [] for site in sites}

    def keep(site: str, layer: int, x: Tensor) -> None:
        found[site].append(x)

    with visited(model, sites, keep):
        return Recording(found, last_logits(model, ids))


def last_logits(
    model: nn.Module, ids: Int[Tensor, "rows time"], cache: Cache | None = None
) -> Float[Tensor, "rows vocab"]:
    """In float32 at least; ``cache`` holds the tokens before ``ids``, and then these too."""
    options: dict[str, Any] = {"use_cache": cache is not None, "past_key_values": cache}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 1
    logits = model(input_ids=ids, **options).logits[:, -1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _find(layer: nn.Module, site: str) -> nn.Module | None:
    for path in PATHS[site]:
        try:
            return layer.get_submodule(path)
        except AttributeError:
            continue
    return None


def _module(layer: nn.Module, site: str, index: int) -> nn.Module:
    found = _find(layer, site)
    if found is None:
        parts = ", ".join(name for name, _ in layer.named_children())
        raise UserError(f"layer {index} ({type(layer).__name__}: {parts}) has no part for the site {site!r}")
    return found


def _pass_on(output: Any, *arguments: Any, **options: Any) -> Any:
    x = _stream(arguments, options)[1]
    return (x, *output[1:]) if isinstance(output, tuple) else x


def _before(visit: Visit, index: int) -> Callable[..., Any]:
    def hook(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        key, x = _stream(arguments, options)
        new = visit("residual", index, x)
        if new is None:
            return None
        if isinstance(key, int):
            return (*arguments[:key], new, *arguments[key + 1 :]), options
        return arguments, {**options, key: new}

    return hook


def _after(visit: Visit, site: str, index: int) -> Callable[..., Any]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            new = visit(site, index, output[0])
            return None if new is None else (new, *output[1:])
        return visit(site, index, output)

    return hook


def _stream(arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[int | str, Tensor]:
    """A layer's input and where it stands: the first tensor ``[rows, time, hidden]``."""
    given: list[tuple[int | str, Any]] = [*enumerate(arguments), *options.items()]
    for key, value in given:
        if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point():
            return key, value
    raise UserError("the residual stream is not one tensor in this model; patching cannot tell what to replace")
