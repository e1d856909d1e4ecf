"""Choosing a checkpoint by how well it retrieves, rather than by its validation loss.

    embedding of a text  = mean of the last hidden states over its tokens, of length 1
    r_i  = mean over queries of nDCG@10 of checkpoint i, passages ranked by cosine,  nDCG = DCG / ideal DCG
    DCG  = Σ_{rank ≤ 10} relevance / log₂(rank + 1)
    by score: the earliest i with r_i ≥ max r − sd;   by loss: argmin of the validation loss
    regret = r[by score] − r[by loss],    lead = tokens[by loss] − tokens[by score]

A network that was trained to predict tokens alone is no retriever yet: each checkpoint is first tuned alike, by
InfoNCE with the batch's other passages as negatives. What is chosen on some pairs is reported on others, because the
best of many noisy scores is too high by its own luck.

After Ugur et al., 2026, arXiv:2601.16018, who choose encoders so; details of the protocol are ours.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import UserError
from assay.models import Decoder

Ids = Int[Tensor, " time"]
Pair = tuple[Ids, Ids]
"""A query and the passage that answers it."""


def ndcg(
    scores: Float[Tensor, "queries passages"], relevance: Float[Tensor, "queries passages"], *, top: int = 10
) -> Float[Tensor, " queries"]:
    """nDCG of each query's ranking by ``scores``, largest first; 0 where no passage is relevant."""
    ranked = relevance.gather(-1, scores.argsort(dim=-1, descending=True, stable=True))
    ideal = relevance.sort(dim=-1, descending=True).values
    places = torch.arange(1, min(top, relevance.shape[-1]) + 1, device=scores.device, dtype=scores.dtype)
    discount = 1 / (places + 1).log2()
    gained, possible = ((row[:, :top] * discount).sum(-1) for row in (ranked, ideal))
    return torch.where(possible > 0, gained / possible.clamp(min=1e-12), 0.0)


def embed(model: Decoder, texts: Sequence[Ids]) -> Float[Tensor, "texts hidden"]:
    """The mean of the last hidden states over each text's tokens, of length 1."""
    device = model.embedding.weight.device
    ids = nn.utils.rnn.pad_sequence(list(texts), batch_first=True).to(device)
    lengths = torch.tensor([len(text) for text in texts], device=device)
    there: Bool[Tensor, "texts time"] = torch.arange(ids.shape[1], device=device) < lengths[:, None]
    hidden = model.hidden(ids).float() * there[..., None]  # causal: padding behind a text changes nothing before it
    return F.normalize(hidden.sum(1) / lengths[:, None], dim=-1)


def tune_retriever(
    model: Decoder,
    pairs: Sequence[Pair],
    *,
    steps: int,
    lr: float = 1e-3,
    batch_size: int = 16,
    temperature: float = 0.05,
    seed: int = 0,
) -> Decoder:
    """A copy of ``model``, tuned by InfoNCE: each query's own passage against the others of its batch.

    AdamW's rate falls linearly from ``lr`` to 0. ``seed`` decides the batches and nothing else.
    """
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    order = _batches(len(pairs), min(batch_size, len(pairs)), seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        queries, passages = zip(*(pairs[i] for i in next(order)), strict=True)
        cosines = embed(model, queries) @ embed(model, passages).T
        loss = F.cross_entropy(cosines / temperature, torch.arange(len(cosines), device=cosines.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def retrieval_score(model: Decoder, pairs: Sequence[Pair], *, batch_size: int = 64) -> float:
    """nDCG@10 in [0, 1] over all queries, each of which looks for its passage among those of all pairs."""
    sides: list[Tensor] = []
    for texts in zip(*pairs, strict=True):
        batches = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
        sides.append(torch.cat([embed(model.eval(), batch) for batch in batches]))
    return float(ndcg(sides[0] @ sides[1].T, torch.eye(len(pairs), device=sides[0].device)).mean())


@dataclasses.dataclass(frozen=True)
class Choice:
    """``by_score`` and ``by_loss`` are places in the lists given; ``lead`` is in units of the steps given."""

    by_score: int
    by_loss: int
    regret: float
    lead: float
    correlation: float
    """Spearman's, of −loss with the score over all checkpoints; NaN below three, or if either is constant."""
    late_correlation: float
    """The same over the last half of the checkpoints."""


def choose(
    steps: Sequence[float], losses: Sequence[float], scores: Sequence[float], *, spread: float = 0.0
) -> Choice:
    """The checkpoint of the best score, the earliest of those within ``spread`` of it, beside that of least loss.

    Raises ``UserError`` if the lists are empty or not of one length.
    """
    if not steps or not len(steps) == len(losses) == len(scores):
        counts = f"{len(steps)} steps, {len(losses)} losses and {len(scores)} scores"
        raise UserError(f"{counts}: a choice needs one of each for every checkpoint")
    places = sorted(range(len(steps)), key=lambda i: steps[i])
    best = max(scores)
    by_score = next(i for i in places if scores[i] >= best - spread)
    by_loss = min(places, key=lambda i: losses[i])
    late = places[len(places) // 2 :]
    return Choice(
        by_score,
        by_loss,
        regret=scores[by_score] - scores[by_loss],
        lead=steps[by_loss] - steps[by_score],
        correlation=_rank_correlation([-losses[i] for i in places], [scores[i] for i in places]),
        late_correlation=_rank_correlation([-losses[i] for i in late], [scores[i] for i in late]),
    )


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one checkpoint, the mean over the seeds of tuning: on the pairs that choose, and on those held out."""

    choosing: float
    held_out: float
    spread: float
    """Standard deviation of ``choosing`` over the seeds, 0 for one."""


def score(
    model: Decoder,
    tuning: Sequence[Pair],
    choosing: Sequence[Pair],
    held_out: Sequence[Pair],
    *,
    steps: int,
    seeds: int = 1,
    lr: float = 1e-3,
    batch_size: int = 16,
) -> Score:
    """``model`` as a retriever after ``steps`` steps on ``tuning``, once for each seed; 0 steps leave it as it is."""
    found = []
    for seed in range(seeds if steps else 1):
        tuned = tune_retriever(model, tuning, steps=steps, lr=lr, batch_size=batch_size, seed=seed)
        found.append((retrieval_score(tuned, choosing), retrieval_score(tuned, held_out)))
    one, other = (list(column) for column in zip(*found, strict=True))
    return Score(statistics.fmean(one), statistics.fmean(other), statistics.stdev(one) if len(one) > 1 else 0.0)


def _batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        for batch in order[: count // size * size].split(size):
            yield batch.tolist()


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return math.nan
    return float(spearmanr(first, second).statistic)
