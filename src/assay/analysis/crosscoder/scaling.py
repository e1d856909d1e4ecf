"""Which latents belong to one model, by the norms of their decoders and by latent scaling."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.analysis.crosscoder.activations import Pair
from assay.analysis.crosscoder.dictionary import Crosscoder
from assay.errors import UserError

ERROR_BELOW, RECONSTRUCTION_BELOW = 0.2, 0.5
"""What ν_error and ν_reconstruction of a model's own latent are below."""
Class = Literal["first", "second", "shared"]


@dataclass(frozen=True)
class Scaling:
    """β of each latent by model, along the latent's direction in ``own``.

    Attributes:
        own: the model in which the latent's decoder is longer, 0 or 1.
        error: β of the models' errors with the latent's own part put back.
        reconstruction: β of the models' reconstructions.
        count: tokens at which the latent is active.
    """

    own: Int[Tensor, " latents"]
    error: Float[Tensor, "2 latents"]
    reconstruction: Float[Tensor, "2 latents"]
    count: Int[Tensor, " latents"]

    def ratio(self, betas: Float[Tensor, "2 latents"]) -> Float[Tensor, " latents"]:
        """ν: β of the other model over β of ``own``; NaN for a latent that is never active."""
        places = torch.arange(betas.shape[1])
        return betas[1 - self.own, places] / betas[self.own, places]


@dataclass(frozen=True)
class Latents:
    """What became of a dictionary on some text.

    Attributes:
        difference: Δ of each latent.
        scaling: the β of each.
        explained: the share of each model's variance that is reconstructed.
        active: latents per token.
    """

    difference: Float[Tensor, " latents"]
    scaling: Scaling
    explained: tuple[float, float]
    active: float

    @property
    def nu_error(self) -> Float[Tensor, " latents"]:
        return self.scaling.ratio(self.scaling.error)

    @property
    def nu_reconstruction(self) -> Float[Tensor, " latents"]:
        return self.scaling.ratio(self.scaling.reconstruction)

    def of(self, which: Class) -> Bool[Tensor, " latents"]:
        """Latents of a class by Δ, among those that are active somewhere."""
        inside = {
            "first": self.difference <= 0.1,
            "second": self.difference >= 0.9,
            "shared": (self.difference >= 0.4) & (self.difference <= 0.6),
        }[which]
        return inside & (self.scaling.count > 0)

    @property
    def genuine(self) -> Bool[Tensor, " latents"]:
        """Latents whose ratios are those of a model's own."""
        return (self.nu_error < ERROR_BELOW) & (self.nu_reconstruction < RECONSTRUCTION_BELOW)


@torch.no_grad()
def read_latents(crosscoder: Crosscoder, batches: Iterable[Pair]) -> Latents:
    """Δ, latent scaling and the fit, from one pass over pairs before ``crosscoder.scale``.

    β(Y) = d·Σᵢ fᵢⱼ Yᵢ / (‖d‖² Σᵢ fᵢⱼ²). For errors Y = xₘ − x̂ₘ + fⱼ Dₘⱼ. Raises ``UserError`` without batches.
    """
    own = (crosscoder.differences() >= 0.5).long()
    decoder = crosscoder.decoder.double()
    d = decoder[own, torch.arange(crosscoder.latents)]
    along = torch.zeros(2, 2, crosscoder.latents, dtype=torch.float64)
    squares = torch.zeros(crosscoder.latents, dtype=torch.float64)
    count = torch.zeros(crosscoder.latents, dtype=torch.long)
    sums, power = (torch.zeros(2, crosscoder.hidden_size, dtype=torch.float64) for _ in range(2))
    unexplained, tokens = torch.zeros(2, dtype=torch.float64), 0
    for pairs in batches:
        x = pairs * crosscoder.scale[:, None]
        codes = crosscoder.encode(x)
        reconstruction = crosscoder.decode(codes).double()
        x, codes = x.double(), codes.double()
        for row, y in enumerate((x - reconstruction, reconstruction)):
            along[row] += torch.einsum("bl,bmh,lh->ml", codes, y, d)
        squares += codes.square().sum(0)
        count += (codes > 0).sum(0)
        sums, power = sums + x.sum(0), power + x.square().sum(0)
        unexplained += (x - reconstruction).square().sum((0, 2))
        tokens += len(x)
    if not tokens:
        raise UserError("there are no activations to read latents from")
    betas = along / (d.square().sum(-1) * squares)
    put_back = torch.einsum("mlh,lh->ml", decoder, d) / d.square().sum(-1)
    variance = (power - sums.square() / tokens).sum(-1)
    first, second = (1 - unexplained / variance).tolist()
    return Latents(
        crosscoder.differences(),
        Scaling(own, betas[0] + put_back, betas[1], count),
        (first, second),
        count.sum().item() / tokens,
    )
