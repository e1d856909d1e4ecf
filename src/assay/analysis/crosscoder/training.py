"""Training a crosscoder on a stream of pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.analysis.crosscoder.activations import Pair
from assay.analysis.crosscoder.dictionary import Crosscoder, batch_top_k
from assay.errors import UserError

SPARSITY = 0.041
"""μ, the weight of the codes' sum (``l1``)."""
AUXILIARY = 1 / 32
"""α, the weight of what dead latents leave unexplained (``batch-topk``)."""
DEAD = 10_000_000
"""Pairs without a code after which a latent is dead; in short trainings a tenth of all pairs."""
WARM_UP = 1000
"""Steps of linear warm-up, and those before the threshold is followed; in short trainings a tenth of all steps."""


def train(
    crosscoder: Crosscoder,
    batches: Iterable[Pair],
    *,
    steps: int,
    lr: float = 1e-4,
    sparsity: float = SPARSITY,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train in place by Adam, with gradients clipped to norm 1.

    ``batches`` are of one size, before ``crosscoder.scale``. ``sparsity`` is μ, which ``batch-topk`` has no use for.
    ``report`` is told the step and the loss after each. Raises ``UserError`` for no ``steps``, an ``lr`` that
    is none, too few batches, or a loss that is no longer finite.
    """
    if steps < 1:
        raise UserError(f"steps is {steps}; training takes 1 at least")
    if not 0 < lr < math.inf:
        raise UserError(f"lr is {lr}; a learning rate is above 0, 1e-4 say")
    optimizer = torch.optim.Adam(crosscoder.parameters(), lr=lr)
    warm_up = min(WARM_UP, max(steps // 10, 1))
    silent = torch.zeros(crosscoder.latents)
    stream = iter(batches)
    for step in range(steps):
        x = next(stream, None)
        if x is None:
            raise UserError(f"there are {step} batches of activations for {steps} steps; give more text")
        x = x * crosscoder.scale[:, None]
        if step == 0 and crosscoder.kind == "batch-topk":
            crosscoder.decoder_bias.data = geometric_median(x)
        limit = min(DEAD, steps * len(x) // 10)
        loss, codes = losses(crosscoder, x, silent >= limit, sparsity)
        if not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} at step {step}; a lower learning rate than {lr} may do")
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / warm_up)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(crosscoder.parameters(), 1.0)
        if crosscoder.kind == "batch-topk" and step >= warm_up:
            follow(crosscoder, codes)
        optimizer.step()
        silent = torch.where((codes > 0).any(0), 0, silent + len(x))
        report(step, loss.item())


def losses(
    crosscoder: Crosscoder, x: Pair, dead: Bool[Tensor, " latents"], sparsity: float
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch latents"]]:
    """The loss on scaled pairs, and the codes that it keeps."""
    codes = crosscoder.codes(x)
    scores = codes * crosscoder.norms().sum(0)
    kept = codes if crosscoder.kind == "l1" else batch_top_k(codes, scores, crosscoder.k)
    error = x - crosscoder.decode(kept)
    loss = error.norm(dim=-1).mean()
    if crosscoder.kind == "l1":
        return loss + sparsity * scores.sum(-1).mean(), codes.detach()
    return loss + AUXILIARY * auxiliary(crosscoder, error.detach(), codes, scores, dead), kept.detach()


def auxiliary(
    crosscoder: Crosscoder,
    error: Pair,
    codes: Float[Tensor, "batch latents"],
    scores: Float[Tensor, "batch latents"],
    dead: Bool[Tensor, " latents"],
) -> Float[Tensor, ""]:
    """The share of the error's variance that the highest dead latents of each pair leave; 0 without dead ones."""
    count = min(max(crosscoder.hidden_size // 2, 1), int(dead.sum()))
    if not count:
        return error.new_zeros(())
    chosen = scores.masked_fill(~dead, -1).topk(count, sorted=False).indices
    revived = torch.zeros_like(codes).scatter(-1, chosen, codes.gather(-1, chosen))
    left = error - torch.einsum("bl,mlh->bmh", revived, crosscoder.decoder)
    return (left.square().mean() / (error - error.mean(0)).square().mean()).nan_to_num()


@torch.no_grad()
def follow(crosscoder: Crosscoder, codes: Float[Tensor, "batch latents"]) -> None:
    """Move the threshold a thousandth of the way to the smallest score that was kept; the first one sets it."""
    scores = codes * crosscoder.norms().sum(0)
    if (scores > 0).any():
        smallest = scores[scores > 0].min()
        crosscoder.threshold.copy_(
            smallest if crosscoder.threshold < 0 else crosscoder.threshold.lerp(smallest, 0.001)
        )


def geometric_median(x: Pair, rounds: int = 100) -> Float[Tensor, "2 hidden"]:
    """The point with the least sum of distances to each model's activations, by Weiszfeld's iteration."""
    point = x.mean(0)
    for _ in range(rounds):
        weights = 1 / (x - point).norm(dim=-1, keepdim=True).clamp_min(1e-6)
        point = (weights * x).sum(0) / weights.sum(0)
    return point
