"""Exponentiated gradient beside its authors' program: python benchmarks/peers/exponentiated_gradient.py CLONE

CLONE is a clone of github.com/linclab/EG_optimiser, of Cornford et al., 2024. Both start from the same weights, of
both signs, and get the same gradients in float64, with Adam's update and with momentum. Their decay with Adam is a
factor 1 − ηλ and ours e^−ηλ, so that one is compared without decay, and with theirs set to have our factor.
"""

from __future__ import annotations

import math

import torch
from clones import Differences, Peer, draw
from torch import nn

from assay.optim.exponentiated_gradient import ExponentiatedGradient

STEPS, LR, BETAS, MOMENTUM, DECAY = 50, 0.02, (0.9, 0.95), 0.9, 0.3


def main() -> None:
    peer = Peer(__doc__, "github.com/linclab/EG_optimiser", "optim_eg/adamw_eg.py")
    descent = Peer(__doc__, "github.com/linclab/EG_optimiser", "optim_eg/sgd_eg.py")
    found = Differences()
    for decay in (0.0, DECAY):
        theirs = (1 - math.exp(-LR * decay)) / LR
        compare(
            found,
            f"Adam's update, decay {decay}",
            {"update": "adam", "betas": BETAS, "weight_decay": decay},
            lambda weights, wd=theirs: peer.module.AdamWeg(weights, lr=LR, betas=BETAS, weight_decay=wd),
        )
    for momentum in (0.0, MOMENTUM):
        compare(
            found,
            f"the gradient, momentum {momentum}",
            {"update": "gradient", "momentum": momentum, "weight_decay": 0.0},
            lambda weights, m=momentum: descent.module.SGD(weights, lr=LR, momentum=m, update_alg="eg"),
        )
    found.write(peer, __file__, steps=STEPS, lr=LR, betas=BETAS, dtype="float64")


def compare(found: Differences, name: str, options: dict[str, object], build: object) -> None:
    ours, theirs = (nn.Parameter(draw(12, 9, seed=0)) for _ in range(2))
    optimizer = ExponentiatedGradient([ours], LR, scale=1.0, **options)
    other = build([theirs])
    for step in range(STEPS):
        ours.grad = draw(12, 9, seed=step + 1)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        other.step()
        found.add(name, ours, theirs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
