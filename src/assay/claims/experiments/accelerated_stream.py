"""How often an early exit says what the whole decoder says: read off an accelerated stream, or off the layer itself.

A decoder is trained on the training text of ``python-stdlib`` and frozen. Then three exits after layer E learn what
the last layer gives, on the same batches, with the same loss (distance to the last state, and divergence from the
last prediction) and the same number of parameters:

    accelerated   the stream of ``assay.models.accelerated_stream``, an adapter in each layer
    affine        h_E + W h_E + b, a tuned lens
    bottleneck    h_E + B silu(A h_E / rms(h_E)), one adapter of the width of all together

and ``exit`` reads h_E as it is. Bhendawade, Najibi, Naik, Belousova, 2025, arXiv:2502.02040.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.claims.experiments import experiments
from assay.data import DataConfig
from assay.data.windows import TokenData, prepare
from assay.models import Decoder, ModelConfig
from assay.models.accelerated_stream import AcceleratedStream, Accelerator
from assay.models.initialization import initialize


@experiments.register("accelerated-stream")
def accelerated_stream(
    seed: int,
    *,
    depth: int = 8,
    hidden_size: int = 64,
    exit_layer: int = 2,
    rate: int = 4,
    rank: int = 16,
    length: int = 64,
    batch_size: int = 8,
    pretraining: int = 400,
    steps: int = 200,
    lr: float = 3e-3,
) -> dict[str, float]:
    """Shares of held-out tokens for which the likeliest next token is the whole decoder's.

    ``accelerated``, ``affine``, ``bottleneck`` and ``exit`` after E layers; ``later`` reads h_2E as it is, which
    takes as many evaluations of layers as the two streams.
    """
    data = prepare(DataConfig(sequence_length=length))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = _pretrained(data, seed, depth, hidden_size, length, batch_size, pretraining, lr)
        stream = AcceleratedStream(decoder, exit_layer=exit_layer, rate=rate, rank=rank)
        affine = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(affine.weight)
        nn.init.zeros_(affine.bias)
        heads = {"affine": affine, "bottleneck": Accelerator(hidden_size, rank * exit_layer)}
    optimizer = torch.optim.Adam(
        [*stream.adapters.parameters(), *(p for head in heads.values() for p in head.parameters())], lr=lr
    )
    for step in range(steps):
        ids = data.batch(step, seed=seed + 1, batch_size=batch_size, sequence_length=length)
        streams = stream(ids)
        early = streams.slow[exit_layer]
        final = stream.logits(streams.slow[-1])
        loss = stream.loss(streams)
        for head in heads.values():
            loss = loss + _distance(stream, early + head(early), streams.slow[rate * exit_layer], final)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _agreement(stream, heads, data, length)


def _pretrained(
    data: TokenData,
    seed: int,
    depth: int,
    hidden_size: int,
    length: int,
    batch_size: int,
    steps: int,
    lr: float,
) -> Decoder:
    config = ModelConfig(depth=depth, hidden_size=hidden_size, vocab_size=data.vocab_size, max_length=length + 1)
    decoder = Decoder(config)
    initialize(decoder, seed, config.init_std)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for step in range(steps):
        rows = data.batch(step, seed=seed, batch_size=batch_size, sequence_length=length)
        loss = F.cross_entropy(decoder(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return decoder.eval()


def _distance(
    stream: AcceleratedStream,
    state: Float[Tensor, "batch time hidden"],
    target: Float[Tensor, "batch time hidden"],
    final: Float[Tensor, "batch time vocab"],
) -> Float[Tensor, ""]:
    """The terms of ``AcceleratedStream.loss`` at the exit."""
    alignment = ((state - target).square().sum(-1) / target.square().sum(-1)).mean()
    ahead, final = (logits.flatten(0, 1).log_softmax(-1) for logits in (stream.logits(state), final))
    return alignment + F.kl_div(ahead, final, reduction="batchmean", log_target=True)


@torch.no_grad()
def _agreement(
    stream: AcceleratedStream, heads: dict[str, nn.Module], data: TokenData, length: int
) -> dict[str, float]:
    ids: Int[Tensor, "batch time"] = next(iter(data.evaluation(length, 128)))[0]
    slow, fast = stream(ids)
    exit_layer = len(fast) - 1
    early = slow[exit_layer]
    states = {"accelerated": fast[-1], **{name: early + head(early) for name, head in heads.items()}}
    states |= {"exit": early, "later": slow[min(2 * exit_layer, len(slow) - 1)]}
    said = stream.logits(slow[-1]).argmax(-1)
    return {name: float((stream.logits(state).argmax(-1) == said).double().mean()) for name, state in states.items()}
