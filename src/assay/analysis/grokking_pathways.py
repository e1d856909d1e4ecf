"""Pathways through a mixture of experts: how far those of two samples are apart, and how smooth one is.

    ḡ_l(i)      = mean over the tokens of sample i of softmax(router logits of layer l)
    route_l(i)  = experts by ḡ_l(i), largest first, cut after their weights' sum first exceeds τ
    pathway(i)  = "3,1,5-2,7-...", commas within a layer, hyphens between layers
    distance    = mean over pairs of samples of the Levenshtein distance of their pathways
    e_l(i)      = Σ_k ḡ_l(i)[k] · W_l[k],  W_l the router's weight
    c_l(i)      = cos(e_l(i), e_{l+1}(i))
    complexity  = mean over samples of 1 − mean_l c_l / (max_l c_l + 1e-8)

In training both are said to fall where a model goes from memorizing to generalising, which takes no test data to see.
A smooth pathway has a low complexity; ``consistency`` is one minus it. The paper edits strings; the unit ``experts``
counts experts in place of characters, so that "12" against "3" is one edit.

Li, Fan, Zhou, 2025, arXiv:2506.21551.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import UserError

Unit = Literal["characters", "experts"]


@dataclasses.dataclass(frozen=True)
class Routing:
    """How samples were routed, by layer."""

    weights: tuple[Float[Tensor, "samples experts"], ...]
    """ḡ, one tensor per routed layer."""
    embeddings: Float[Tensor, "samples layers hidden"]
    """e, the router's rows weighted by ḡ."""


@dataclasses.dataclass(frozen=True)
class Pathways:
    """What is reported of a group of samples. ``complexity`` is NaN if no sample has c_l > 0 in any layer."""

    samples: int
    pairs: int
    distance: float
    """Edits, mean over the pairs."""
    layer_distances: tuple[float, ...]
    """The same for the routes of each layer alone."""
    complexity: float

    @property
    def consistency(self) -> float:
        """1 − complexity: higher is smoother."""
        return 1 - self.complexity


def pathways(
    routing: Routing, *, tau: float = 0.7, unit: Unit = "characters", pairs: int = 1000, seed: int = 0
) -> Pathways:
    """Distance and complexity of the pathways of a group of samples.

    ``pairs`` is how many to compare at most; ``seed`` draws them if there are more, the same ones for every
    checkpoint. Raises ``UserError`` for fewer than 2 samples or layers, or a τ that is not in (0, 1].
    """
    samples = len(routing.embeddings)
    if samples < 2:
        raise UserError(f"{samples} sample makes no pair; pathways are compared between at least 2 samples")
    chosen = _pairs(samples, pairs, seed)
    routes = [[route(weights, tau) for weights in sample] for sample in zip(*routing.weights, strict=True)]
    whole = [_sequence(sample, unit) for sample in routes]
    distances = [
        np.mean([levenshtein(layer[a], layer[b]) for a, b in chosen])
        for layer in ([_sequence([sample[number]], unit) for sample in routes] for number in range(len(routes[0])))
    ]
    found = complexity(routing.embeddings)
    known = found[~found.isnan()]
    return Pathways(
        samples,
        len(chosen),
        float(np.mean([levenshtein(whole[a], whole[b]) for a, b in chosen])),
        tuple(map(float, distances)),
        known.mean().item() if len(known) else math.nan,
    )


def complexity(embeddings: Float[Tensor, "samples layers hidden"]) -> Float[Tensor, " samples"]:
    """1 − mean_l c_l / (max_l c_l + 1e-8) of each sample; NaN where no c_l is above 0.

    Raises ``UserError`` for fewer than 2 layers.
    """
    if embeddings.shape[1] < 2:
        raise UserError("complexity compares each routed layer with the next; the model has only one")
    cosines = F.cosine_similarity(embeddings[:, :-1].double(), embeddings[:, 1:].double(), dim=-1)
    highest = cosines.amax(1)
    return torch.where(highest > 0, 1 - cosines.mean(1) / (highest + 1e-8), math.nan)


def route(weights: Float[Tensor, " experts"], tau: float = 0.7) -> tuple[int, ...]:
    """The experts of largest weight, cut after their sum first exceeds ``tau``; of equal ones the lower id first.

    Raises ``UserError`` for a ``tau`` that is not in (0, 1].
    """
    if not 0 < tau <= 1:
        raise UserError(f"tau {tau:g} is no share of the routing weight; it must be above 0 and at most 1, e.g. 0.7")
    values, order = weights.sort(descending=True, stable=True)
    reached = values.double().cumsum(0) > tau
    count = int(reached.int().argmax()) + 1 if bool(reached.any()) and tau < 1 else len(weights)
    return tuple(order[:count].tolist())


def pathway(routes: Sequence[Sequence[int]]) -> str:
    """The pathway as a string.

    >>> pathway([(3, 1, 5), (2, 7)])
    '3,1,5-2,7'
    """
    return "-".join(",".join(map(str, layer)) for layer in routes)


def levenshtein(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The fewest insertions, deletions and substitutions that make ``b`` of ``a``.

    All rows of a column of the usual table at once, as bits of two numbers: Myers, 1999; Hyyrö, 2003.

    >>> levenshtein("kitten", "sitting")
    3
    """
    if not a:
        return len(b)
    places: dict[Hashable, int] = {}
    for number, symbol in enumerate(a):
        places[symbol] = places.get(symbol, 0) | 1 << number
    every, last = (1 << len(a)) - 1, 1 << len(a) - 1
    rises, falls, distance = every, 0, len(a)
    for symbol in b:
        equal = places.get(symbol, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        right_rises = falls | (~(diagonal | rises) & every)
        right_falls = diagonal & rises
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = right_rises << 1 | 1
        rises = (right_falls << 1 | ~(diagonal | right_rises)) & every
        falls = right_rises & diagonal & every
    return distance


@torch.no_grad()
def routing(model: nn.Module, samples: Iterable[Any], *, routers: Mapping[str, nn.Module] | None = None) -> Routing:
    """Run ``model`` on each sample (one batch each) and record where its routers send all its tokens.

    Weights are the softmax over all experts of W x (+ bias), before any choice of the best. ``routers`` are by
    default those that ``find_routers`` finds. Raises ``UserError`` if a router did not run once per pass.
    """
    routers = find_routers(model) if routers is None else routers
    matrices = {name: _matrix(router) for name, router in routers.items()}
    means: dict[str, list[Tensor]] = {name: [] for name in routers}

    def keep(name: str, router: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = arguments[0] if arguments else next(iter(named.values()))
        weight, bias = matrices[name]
        logits = F.linear(x.reshape(-1, weight.shape[1]).float(), weight.float(), bias)
        means[name].append(logits.softmax(-1).mean(0).cpu())

    hooks = [
        router.register_forward_pre_hook(partial(keep, name), with_kwargs=True) for name, router in routers.items()
    ]
    count = 0
    try:
        for count, sample in enumerate(samples, start=1):
            model(sample)
            for name, found in means.items():
                if len(found) != count:
                    raise UserError(
                        f"router {name!r} ran {len(found)} times in {count} passes; it must run once in each"
                    )
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise UserError("there is no sample to route; give some text")
    weights = tuple(torch.stack(found) for found in means.values())
    rows = (weight.float().cpu() for weight, _ in matrices.values())
    return Routing(weights, torch.stack([g @ w for g, w in zip(weights, rows, strict=True)], 1))


def find_routers(model: nn.Module) -> dict[str, nn.Module]:
    """The routers of a model by name, in order.

    A router is a module named ``gate`` or ``router`` with one matrix [experts, hidden], in a module that has experts
    or is called a mixture of them (``MoE``). Raises ``UserError`` if there is none.
    """
    found = {}
    for name, block in model.named_modules():
        children = dict(block.named_children())
        if not ("moe" in type(block).__name__.lower() or any("expert" in child for child in children)):
            continue
        for child in ("gate", "router"):
            if child in children and sum(p.dim() == 2 for p in children[child].parameters()) == 1:
                found[f"{name}.{child}".lstrip(".")] = children[child]
    if not found:
        raise UserError(
            f"{type(model).__name__} has no router of experts; pathways are those of a mixture of experts"
        )
    return found


def _matrix(router: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The router's weight, and its bias where it has one."""
    parameters = dict(router.named_parameters())
    (name,) = [name for name, parameter in parameters.items() if parameter.dim() == 2]
    bias = parameters.get(name.removesuffix("weight") + "bias")
    return parameters[name].detach(), None if bias is None else bias.detach().float()


def _sequence(routes: Sequence[Sequence[int]], unit: Unit) -> Sequence[Hashable]:
    if unit == "characters":
        return pathway(routes)
    return [expert for layer in routes for expert in (*layer, "-")][:-1]


def _pairs(samples: int, most: int, seed: int) -> list[tuple[int, int]]:
    every = list(itertools.combinations(range(samples), 2))
    if len(every) <= most:
        return every
    return [every[place] for place in np.random.default_rng(seed).choice(len(every), most, replace=False)]
