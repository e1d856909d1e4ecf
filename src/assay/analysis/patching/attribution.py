"""Attribution patching: the first-order estimate of activation patching, for all activations in one backward pass.

    S(c) = Σ (h_c clean − h_c corrupted) · ∂M/∂h_c on the corrupted run

With ``rules`` the derivative is replaced by relevance, as in ``relevance``: Relevance Patching.

Nanda, 2023 (attribution patching); Syed, Rager, Conmy, 2023, arXiv:2310.10348.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.analysis.patching.pairs import EncodedPairs
from assay.analysis.patching.relevance import relevance
from assay.analysis.patching.sites import SITES, Effects, Recording, check_sites, prepared, record, visited


def attribution_patching(
    model: nn.Module, pairs: EncodedPairs, *, sites: Sequence[str] = SITES, rules: Sequence[str] = ()
) -> Effects:
    """S of each of ``sites`` at every layer and position: two passes forward, one backward.

    0 before the first position at which the prompts differ, where kernels may round the two runs differently.
    Raises ``UserError`` for a model without ``sites``, one with a part for which ``rules`` have none, or prompts
    between which the metric does not change.
    """
    check_sites(sites)
    pairs = pairs.to(next(model.parameters()).device)
    with prepared(model):
        with torch.no_grad():
            clean = record(model, pairs.clean, sites)
        corrupted = differentiable(model, pairs.corrupted, sites, rules)
    low = pairs.difference(corrupted.logits).mean()
    span = pairs.span(pairs.difference(clean.logits).mean(), low.detach())
    flat = [x for site in sites for x in corrupted.activations[site]]
    slopes = iter(torch.autograd.grad(low / span, flat))
    found = {
        site: torch.stack(
            [
                ((kept - x.detach()) * next(slopes)).sum((0, 2)).cpu()
                for kept, x in zip(clean.activations[site], corrupted.activations[site], strict=True)
            ]
        )
        for site in sites
    }
    for effects in found.values():
        effects[:, : pairs.first] = 0
    return found


def differentiable(
    model: nn.Module, ids: Int[Tensor, "rows time"], sites: Sequence[str], rules: Sequence[str] = ()
) -> Recording:
    """``record`` with a graph that starts at the embedding, under ``rules``."""

    def begin(site: str, layer: int, x: Float[Tensor, "rows time hidden"]) -> Tensor | None:
        return x.detach().requires_grad_() if layer == 0 else None

    with torch.enable_grad(), prepared(model), visited(model, ("residual",), begin), relevance(model, rules):
        return record(model, ids, sites)
