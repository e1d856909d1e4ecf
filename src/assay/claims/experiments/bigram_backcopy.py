"""Sinks on the Bigram-Backcopy task: softmax beside ReLU attention, Adam beside SGD.

Small decoders with learned positions, LayerNorm, one head and PyTorch's own initial values learn the task of
``assay.data.synthetic``, as in Guo et al., 2024, arXiv:2410.13835. There, 256 features and an MLP with ReLU learn
from sequences of 256 tokens, 512 in each of 10 000 steps or more, at a tenth of the learning rates here.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from assay.claims.experiments import experiments
from assay.claims.properties.attention_sink import (
    first_token_share,
    first_token_weight,
    redirected,
    residual_peak,
    value_drain,
)
from assay.data.synthetic.bigram_backcopy import BigramBackcopy
from assay.models import Decoder, ModelConfig


@experiments.register("backcopy-sink")
def backcopy_sink(
    seed: int,
    *,
    steps: int = 400,
    hidden_size: int = 64,
    length: int = 64,
    batch_size: int = 64,
    lr: float = 3e-3,
) -> dict[str, float]:
    """One layer, softmax and ReLU attention, AdamW.

    ``X.sink`` is the first-token weight over queries that are not triggers and ``X.share`` their first-token share,
    ``X.drain`` the value drain, ``X.excess`` the cross-entropy above the rule's own in nats, ``X.active`` and
    ``X.dormant`` what removing the head adds to the loss on triggers and elsewhere.
    """
    task = BigramBackcopy.random(seed)
    found: dict[str, float] = {}
    for name, mixer in (("softmax", "softmax"), ("relu", "relu-attention")):
        model = train(
            task, seed, depth=1, mixer=mixer, optimizer="adamw", lr=lr, steps=steps,
            hidden_size=hidden_size, length=length, batch_size=batch_size,
        )  # fmt: skip
        ids = task.batch(np.random.default_rng([seed, 1]), 256, length)
        trigger = task.is_trigger(ids)
        loss, best = losses(model, ids), losses_of_rule(task, ids)
        with redirected(model, {0: [0]}, "nothing"):
            cost = losses(model, ids) - loss
        found |= {
            f"{name}.sink": first_token_weight(model, ids, ~trigger).item(),
            f"{name}.share": first_token_share(model, ids, ~trigger).item(),
            f"{name}.drain": value_drain(model, ids).item(),
            f"{name}.excess": (loss - best).mean().item(),
            f"{name}.active": cost[trigger[:, :-1]].mean().item(),
            f"{name}.dormant": cost[~trigger[:, :-1]].mean().item(),
        }
    return found


@experiments.register("backcopy-residual-peak")
def backcopy_residual_peak(
    seed: int,
    *,
    steps: int = 800,
    hidden_size: int = 64,
    length: int = 32,
    batch_size: int = 32,
    adam_lr: float = 3e-3,
    sgd_lr: float = 0.3,
) -> dict[str, float]:
    """Three layers of softmax attention under AdamW and under SGD with momentum 0.9.

    ``X.peak`` is the largest residual peak of a layer, ``X.excess`` the cross-entropy above the rule's own in nats.
    """
    task = BigramBackcopy.random(seed)
    found: dict[str, float] = {}
    for name, optimizer, lr in (("adam", "adamw", adam_lr), ("sgd", "sgd", sgd_lr)):
        model = train(
            task, seed, depth=3, mixer="softmax", optimizer=optimizer, lr=lr, steps=steps,
            hidden_size=hidden_size, length=length, batch_size=batch_size,
        )  # fmt: skip
        ids = task.batch(np.random.default_rng([seed, 1]), 256, length)
        found[f"{name}.peak"] = residual_peak(model, ids).max().item()
        found[f"{name}.excess"] = (losses(model, ids) - losses_of_rule(task, ids)).mean().item()
    return found


def train(
    task: BigramBackcopy,
    seed: int,
    *,
    depth: int,
    mixer: str,
    optimizer: str,
    lr: float,
    steps: int,
    hidden_size: int,
    length: int,
    batch_size: int,
) -> Decoder:
    """A decoder after ``steps`` steps at a constant learning rate, in evaluation mode."""
    torch.manual_seed(seed)
    config = ModelConfig.parse(
        {
            "depth": depth,
            "hidden_size": hidden_size,
            "num_heads": 1,
            "vocab_size": task.vocab_size,
            "max_length": length,
            "norm": "layer-norm",
            "mlp": "gelu",
            "position": "learned",
            "mixer": mixer,
        }
    )
    model = Decoder(config)
    chosen: torch.optim.Optimizer = (
        torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.99), weight_decay=1e-4)
        if optimizer == "adamw"
        else torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    )
    rng = np.random.default_rng([seed, 0])
    for _ in range(steps):
        ids = task.batch(rng, batch_size, length)
        chosen.zero_grad()
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        chosen.step()
    return model.eval()


@torch.no_grad()
def losses(model: Decoder, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time-1"]:
    """Nats of each token but the first."""
    return F.cross_entropy(model(ids)[:, :-1].mT, ids[:, 1:], reduction="none")


def losses_of_rule(task: BigramBackcopy, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time-1"]:
    """The same for who knows the rule."""
    return -task.next_token(ids)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].log().float()
