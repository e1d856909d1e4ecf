"""Crosscoders on activations whose directions are known, so that it is known which belong to one model only."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from assay.analysis.crosscoder import Crosscoder, Kind, Latents, Pair, read_latents, scales_of, train
from assay.claims.experiments import experiments

HELD_OUT = 40
ALIKE = 0.7
"""The cosine above which a latent stands for a direction; the others follow the noise, each model's own."""


@experiments.register("planted-latents")
def planted_latents(
    seed: int,
    *,
    hidden_size: int = 96,
    shared: int = 96,
    weak: int = 16,
    alone: int = 16,
    strength: float = 0.4,
    active: float = 0.05,
    noise: float = 0.4,
    latents: int = 192,
    steps: int = 3000,
    batch_size: int = 256,
    lr: float = 1e-3,
    sparsity: float = 0.1,
) -> dict[str, float]:
    """An L1 and a BatchTopK crosscoder on sums of sparse random directions.

    ``shared`` directions are in both models, ``weak`` of them with ``strength`` in the first; ``alone`` are in each
    model only. Each is ``active`` that often, and ``noise`` is the share of the variance that is noise. ``sparsity``
    is for the L1 penalty.

    ``KIND.false`` and ``KIND.true`` count latents that Δ gives to one model only, by whether the other model has the
    direction that they stand for, too; ``KIND.false.passed`` and ``KIND.true.passed`` those of them that latent
    scaling calls genuine. ``KIND.explained`` is the explained variance, the mean of both models, and ``KIND.active``
    latents per pair.
    """
    generator = torch.Generator().manual_seed(seed)
    count = shared + 2 * alone
    directions = torch.randn(count, hidden_size, generator=generator)
    directions /= directions.norm(dim=-1, keepdim=True)
    gains = torch.ones(2, count)
    gains[0, :weak] = strength
    gains[0, shared : shared + alone] = gains[1, shared + alone :] = 0

    def stream(order: int) -> Iterator[Pair]:
        draws = torch.Generator().manual_seed(order)
        # f in ½ .. 1½ has a mean square of 13/12
        deviation = (noise / (1 - noise) * count * active * 13 / 12 / hidden_size) ** 0.5
        while True:
            on = torch.rand(batch_size, count, generator=draws) < active
            codes = on * (0.5 + torch.rand(batch_size, count, generator=draws))
            clean = torch.einsum("bc,mc,ch->bmh", codes, gains, directions)
            yield clean + deviation * torch.randn(clean.shape, generator=draws)

    found: dict[str, float] = {}
    kinds: tuple[Kind, ...] = ("l1", "batch-topk")
    for kind in kinds:
        dictionary = Crosscoder(hidden_size, latents, kind=kind, k=round(count * active), seed=seed)
        dictionary.scale = scales_of(batch for batch, _ in zip(stream(2 * seed), range(8), strict=False))
        train(dictionary, stream(2 * seed), steps=steps, lr=lr, sparsity=sparsity)
        held_out = (batch for batch, _ in zip(stream(2 * seed + 1), range(HELD_OUT), strict=False))
        read = read_latents(dictionary, held_out)
        found |= {f"{kind}.{name}": value for name, value in counts(dictionary, read, directions, gains).items()}
    return found


def counts(
    dictionary: Crosscoder,
    read: Latents,
    directions: Float[Tensor, "count hidden"],
    gains: Float[Tensor, "2 count"],
) -> dict[str, float]:
    """What ``planted_latents`` reports of one crosscoder."""
    own = read.scaling.own
    decoder = dictionary.decoder.detach()[own, torch.arange(dictionary.latents)]
    cosine, nearest = (decoder @ directions.T / decoder.norm(dim=-1, keepdim=True)).max(-1)
    elsewhere = gains[1 - own, nearest] > 0
    only = (read.of("first") | read.of("second")) & (cosine > ALIKE)
    return {
        "false": float((only & elsewhere).sum()),
        "true": float((only & ~elsewhere).sum()),
        "false.passed": float((only & elsewhere & read.genuine).sum()),
        "true.passed": float((only & ~elsewhere & read.genuine).sum()),
        "explained": sum(read.explained) / 2,
        "active": read.active,
    }
