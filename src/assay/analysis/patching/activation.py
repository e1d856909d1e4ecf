"""Activation patching: the metric of the corrupted run with one activation of the clean run in it.

    A(c) = M(corrupted run with h_c := clean h_c)

It is 0 where nothing comes back and 1 where everything does; one run per activation.

Vig et al., 2020, arXiv:2004.12265; Zhang, Nanda, 2023, arXiv:2309.16042.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.analysis.patching.pairs import EncodedPairs
from assay.analysis.patching.sites import (
    SITES,
    Effects,
    cache_of,
    check_sites,
    last_logits,
    layers_of,
    outputs_of,
    prepared,
    record,
    skipped,
    visited,
)


class Patcher:
    """Both runs of ``pairs``, and runs in which activations of the clean one stand in the corrupted one.

    ``difference`` is (d_clean, d_corrupted). Raises ``UserError`` for a model without ``sites``, or if the two are
    equal.
    """

    def __init__(self, model: nn.Module, pairs: EncodedPairs, sites: Sequence[str] = SITES) -> None:
        check_sites(sites)
        self.model = model
        self.pairs = pairs.to(next(model.parameters()).device)
        self.layers = layers_of(model)
        with prepared(model), torch.no_grad():
            both = [record(model, ids, {"residual", *sites}) for ids in (self.pairs.clean, self.pairs.corrupted)]
            self._outputs = outputs_of(model, self.pairs.corrupted[:1])
            self._before = cache_of(model, self.pairs.corrupted[:, : pairs.first])
        self.clean, self.corrupted = both
        high, low = (self.pairs.difference(run.logits).mean() for run in both)
        self.difference = (float(high), float(low))
        self._low, self._span = low, self.pairs.span(high, low)

    @torch.no_grad()
    def effect(self, site: str, layer: int, where: Bool[Tensor, "sets time"]) -> Float[Tensor, " sets"]:
        """M with the clean activations of ``site`` in ``layer`` at each set of positions, one set at a time.

        What the patch cannot change is not calculated again: layers before ``layer``, and positions before the first
        at which the prompts differ.
        """
        sets, pairs, first = len(where), len(self.pairs.answer), self.pairs.first
        clean = self.clean.of(site, layer)[:, first:].repeat(sets, 1, 1)
        chosen = where[:, first:].to(clean.device).repeat_interleave(pairs, 0)[..., None]

        def patch(place: str, index: int, x: Tensor) -> Tensor | None:
            if index != layer or place not in ("residual", site):
                return None
            if place == "residual":
                x = self.corrupted.of("residual", layer)[:, first:].repeat(sets, 1, 1)
            return torch.where(chosen, clean, x) if place == site else x

        before = copy.deepcopy(self._before)
        before.batch_select_indices(torch.arange(pairs, device=clean.device).repeat(sets))
        earlier = skipped(self.layers[:layer], self._outputs[:layer])
        with prepared(self.model), earlier, visited(self.model, {"residual", site}, patch):
            logits = last_logits(self.model, self.pairs.corrupted[:, first:].repeat(sets, 1), before)
        difference = self.pairs.difference(logits).unflatten(0, (sets, pairs)).mean(1)
        return (difference - self._low) / self._span

    def effects(self, site: str, batch_size: int = 64) -> Float[Tensor, "layers time"]:
        """A of each layer and position, ``batch_size`` prompts at a time.

        0 without a run before the first position at which the prompts differ.
        """
        first, time = self.pairs.first, self.pairs.clean.shape[1]
        found = torch.zeros(len(self.layers), time)
        places = torch.eye(time, dtype=torch.bool)[first:]
        for layer in range(len(self.layers)):
            chunks = places.split(max(1, batch_size // len(self.pairs.answer)))
            found[layer, first:] = torch.cat([self.effect(site, layer, chunk) for chunk in chunks]).cpu()
        return found


def activation_patching(
    model: nn.Module, pairs: EncodedPairs, *, sites: Sequence[str] = SITES, batch_size: int = 64
) -> Effects:
    """A of each of ``sites`` at every layer and position. Raises ``UserError`` as ``Patcher`` does."""
    patcher = Patcher(model, pairs, sites)
    return {site: patcher.effects(site, batch_size) for site in sites}
