"""The bipartite graph of token types and features of a sparse autoencoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from assay.analysis.function_tokens.split import membership
from assay.errors import UserError

Encode = Callable[[Float[Tensor, "batch hidden"]], Float[Tensor, "batch features"]]
_TOGETHER = 1024


@dataclasses.dataclass(frozen=True)
class FeatureGraph:
    """Which token types switch on which features; types are sorted by their count, the most frequent first."""

    ids: Int[Tensor, " types"]
    edges: Bool[Tensor, "types features"]

    @property
    def degree(self) -> Int[Tensor, " types"]:
        """Features of each type."""
        return self.edges.sum(1)

    @property
    def coverage(self) -> Float[Tensor, " types"]:
        """The share of the features with an edge that a type and all before it switch on."""
        first = torch.where(self.edges.any(0), self.edges.int().argmax(0), len(self.ids))
        new = torch.bincount(first, minlength=len(self.ids) + 1)[:-1]
        return new.cumsum(0) / new.sum().clamp(min=1)


def feature_graph(
    inputs: Int[Tensor, " positions"], states: Float[Tensor, "positions hidden"], encode: Encode
) -> FeatureGraph:
    """Edges from the token at each position to the features that ``encode`` makes positive there."""
    ids, rows, counts = inputs.unique(return_inverse=True, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    rows = order.argsort()[rows]
    edges: Tensor | None = None
    for place, part in zip(rows.split(_TOGETHER), states.split(_TOGETHER), strict=True):
        active = encode(part) > 0
        if edges is None:
            edges = torch.zeros(len(ids), active.shape[1], dtype=torch.bool)
        position, feature = active.cpu().nonzero(as_tuple=True)
        edges[place[position], feature] = True
    if edges is None:
        raise UserError("there are no positions to look for features at; give more text")
    return FeatureGraph(ids[order], edges)


def equal_degrees(
    inputs: Int[Tensor, " positions"],
    states: Float[Tensor, "positions hidden"],
    encode: Encode,
    function: Integer[np.ndarray, " function"],
    *,
    occurrences: int = 16,
    seed: int = 0,
) -> tuple[float, float]:
    """The mean degree of function and of content types, each from ``occurrences`` positions drawn at random.

    Types that occur less often are left out. Raises ``UserError`` if that leaves none of a class.
    """
    if occurrences < 1:
        raise UserError(f"{occurrences} occurrences of a token switch nothing on; 1 is the least")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(inputs), generator=generator)
    drawn = drawn[inputs[drawn].argsort(stable=True)]
    counts = inputs.unique(return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    chosen = (starts[counts >= occurrences, None] + torch.arange(occurrences)).flatten()
    positions = drawn[chosen]
    if not len(positions):
        raise UserError(f"no token occurs {occurrences} times; give more text or ask for fewer occurrences")
    graph = feature_graph(inputs[positions], states[positions], encode)
    is_function = torch.from_numpy(membership(graph.ids.numpy(), function))
    if bool(is_function.all()) or not bool(is_function.any()):
        rest = "content" if bool(is_function.all()) else "function"
        raise UserError(f"no {rest} token occurs {occurrences} times; give more text or ask for fewer occurrences")
    degree = graph.degree.double()
    return degree[is_function].mean().item(), degree[~is_function].mean().item()
