"""Unified Norm beside the module of its authors, over training steps: python benchmarks/peers/unified_norm.py CLONE

CLONE is a clone of github.com/hikvision-research/Unified-Normalization. Both norms start alike, get the same inputs
and gradients in float64, and both move their gain and offset by our gradients. The authors' r is 1 for at least 1,000
steps, whatever the warm-up, and one step longer than the warm-up. So the warm-up is 1,000 steps here, and step 1,000,
where the gradients differ by r, reaches later ones through e, which forgets it as 0.9 to the number of steps:
gradients are compared before step 1,000 and from 300 steps after it. All else is compared at every step.

In a second training batches may be outliers, and some are ten times as large. With an outlier the authors' φ and e
move all the same, while ours stay, as the paper has it. So after each step ours is given the state of theirs, and
each step is compared by itself, but for the gradients of step 1,000.
"""

from __future__ import annotations

from typing import Any

import torch
from clones import Differences, Peer, draw

from assay.nn.norm.unified_norm import UnifiedNorm

HIDDEN, WINDOW, WARMUP, STEPS, FORGOTTEN, LR = 6, 4, 1000, 1400, 1300, 0.01
FILE = "image_classification/models/unified_normalization/unified_normalization.py"


def main() -> None:
    peer = Peer(__doc__, "github.com/hikvision-research/Unified-Normalization", FILE)
    found = Differences()
    train(peer, found)
    outliers = train_with_outliers(peer, found)
    setting = {"hidden_size": HIDDEN, "window": WINDOW, "warmup": WARMUP, "steps": STEPS, "dtype": "float64"}
    found.write(peer, __file__, **setting, outliers=outliers)


def both(peer: Peer, *, outlier_filtration: bool) -> tuple[UnifiedNorm, Any]:
    ours = UnifiedNorm(HIDDEN, window=WINDOW, warmup=WARMUP, outlier_filtration=outlier_filtration)
    theirs = peer.module.UN1d(HIDDEN, WINDOW, WARMUP, outlier_filtration)
    return ours.double(), theirs.double()


def step(ours: UnifiedNorm, theirs: Any, found: Differences, number: int, scale: float, label: str = "") -> None:
    """Forward and backward of both, and a step of gradient descent along our gradients."""
    x, dy = scale * draw(3, 5, HIDDEN, seed=2 * number), draw(3, 5, HIDDEN, seed=2 * number + 1)
    given = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    results = []
    for norm, one in zip((ours, theirs), given, strict=True):
        norm.zero_grad()
        results.append(norm(one))
        results[-1].backward(dy)
    found.add(f"y{label}", *results)
    found.add(f"gradient of bias{label}", ours.bias.grad, theirs.bias.grad)
    comparable = number != WARMUP if label else number < WARMUP or number > FORGOTTEN
    if comparable:
        when = "warm-up" if number < WARMUP else "after it"
        found.add(f"gradient of x, {when}{label}", *[one.grad for one in given])
        found.add(f"gradient of weight, {when}{label}", ours.weight.grad, theirs.weight.grad)
    for name in ("weight", "bias"):
        moved = getattr(ours, name).data - LR * getattr(ours, name).grad
        getattr(ours, name).data.copy_(moved)
        getattr(theirs, name).data.copy_(moved)


def train(peer: Peer, found: Differences) -> None:
    ours, theirs = both(peer, outlier_filtration=False)
    for number in range(1, STEPS + 1):
        step(ours, theirs, found, number, scale=1 + number % 3)
    found.add("running quadratic mean φ", ours.second_moment, theirs.running_var)
    found.add("running gradient mean e", ours.gradient_mean, theirs.ema_gz)
    x = draw(3, 5, HIDDEN, seed=99)
    found.add("y in evaluation", ours.eval()(x), theirs.eval()(x))


def train_with_outliers(peer: Peer, found: Differences) -> int:
    ours, theirs = both(peer, outlier_filtration=True)
    for number in range(1, STEPS + 1):
        step(ours, theirs, found, number, scale=10 if number % 7 == 0 else 1, label=", outliers")
        for name, other in (("second_moment", "running_var"), ("gradient_mean", "ema_gz")):
            getattr(ours, name).copy_(getattr(theirs, other))
        for name, other in (("moment_window", "buffer_x2"), ("gradient_window", "buffer_gz")):
            getattr(ours, name).copy_(getattr(theirs, other).roll(-(number % WINDOW) - 1, 0))
    return int(theirs.skip_counter)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
