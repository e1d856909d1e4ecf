"""Relevance Patching: attribution patching with relevance in place of the gradient, beside the truth.

    truth         A(c) = M(corrupted run with h_c := clean h_c)
    attribution   S(c) = Σ (h_c clean − h_c corrupted) · ∂M/∂h_c on the corrupted run
    RelP          the same with ∂M/∂h_c by the rules of layer-wise relevance propagation

for the residual stream before each layer, the output of its attention and that of its MLP, at each position. M is
the logit difference, 0 on the corrupted prompts and 1 on the clean ones. The two estimates cost two passes forward
and one backward each, the truth one pass per activation.

Rezaei Jafari, Eberle, Khakzar, Nanda, 2025, arXiv:2508.21258.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float
from torch import Tensor, nn

from assay.analysis.patching.activation import Patcher
from assay.analysis.patching.attribution import attribution_patching
from assay.analysis.patching.pairs import EncodedPairs
from assay.analysis.patching.relevance import DEFAULT_RULES
from assay.analysis.patching.sites import SITES, Effects


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Correlations of a method's effects with those of activation patching, NaN where either never varies."""

    method: str
    site: str
    pearson: float
    spearman: float


@dataclasses.dataclass(frozen=True)
class Place:
    """An activation, and its effect by each method."""

    site: str
    layer: int
    position: int
    effects: dict[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class RelP:
    """Effects of all activations, by method (``activation``, where asked for, ``attribution`` and ``relp``) and site.

    Attributes:
        first: the first position at which prompts differ; effects before it are 0.
        clean: the mean logit difference on the clean prompts.
        corrupted: the same on the corrupted ones.
    """

    first: int
    clean: float
    corrupted: float
    effects: dict[str, Effects]

    def agreement(self) -> list[Agreement]:
        """Over layers and positions from ``first`` on; empty without activation patching."""
        if "activation" not in self.effects:
            return []
        truth = self.effects["activation"]
        return [
            Agreement(method, site, *correlations(values[..., self.first :], truth[site][..., self.first :]))
            for method, effects in self.effects.items()
            if method != "activation"
            for site, values in effects.items()
        ]

    def strongest(self, count: int) -> list[Place]:
        """The places with the largest effect by RelP, of either sign."""
        found = self.effects.items()
        places = [
            Place(site, layer, position, {name: float(by_site[site][layer, position]) for name, by_site in found})
            for site, values in self.effects["relp"].items()
            for layer, position in np.ndindex(*values.shape)
        ]
        return sorted(places, key=lambda place: -abs(place.effects["relp"]))[:count]


def relp(
    model: nn.Module,
    pairs: EncodedPairs,
    *,
    sites: Sequence[str] = SITES,
    rules: Sequence[str] = DEFAULT_RULES,
    truth: bool = True,
    batch_size: int = 64,
) -> RelP:
    """Effects by RelP and attribution patching and, with ``truth``, by activation patching.

    ``model`` is a causal language model of transformers; the truth takes ``batch_size`` prompts at a time. Raises
    ``UserError`` for a model without ``sites`` or with a part that ``rules`` do not cover, and for prompts between
    which the logit difference does not change.
    """
    patcher = Patcher(model, pairs, sites)
    effects = {"activation": {site: patcher.effects(site, batch_size) for site in sites}} if truth else {}
    effects["attribution"] = attribution_patching(model, pairs, sites=sites)
    effects["relp"] = attribution_patching(model, pairs, sites=sites, rules=rules)
    return RelP(pairs.first, *patcher.difference, effects)


def correlations(estimate: Float[Tensor, "layers time"], truth: Float[Tensor, "layers time"]) -> tuple[float, float]:
    """Pearson's and Spearman's, NaN if one of the two is constant."""
    x, y = (values.double().numpy().ravel() for values in (estimate, truth))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan, math.nan
    return float(scipy.stats.pearsonr(x, y).statistic), float(scipy.stats.spearmanr(x, y).statistic)
