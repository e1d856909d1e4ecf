"""PowerNorm beside the module of its authors, over training steps: python benchmarks/peers/powernorm.py CLONE

CLONE is a clone of github.com/sIncerass/powernorm. Both norms start alike, get the same inputs and gradients in
float64, and train their own gain and offset by gradient descent, 10 steps of warm-up and 30 after it. Then both
evaluate.

After the warm-up the authors' backward divides by the batch's quadratic mean, though its forward divides by the
running one. Ours divides by what the forward divides by, as the paper does. So the gradients after the warm-up are
compared twice: as they are, and with the authors' times the ratio of the two quadratic means, which undoes that.
"""

from __future__ import annotations

from typing import Any

import torch
from clones import Differences, Peer, draw
from torch import Tensor

from assay.nn.norm.powernorm import PowerNorm

HIDDEN, GROUPS, WARMUP, STEPS, LR = 12, 3, 10, 40, 0.05


def main() -> None:
    peer = Peer(__doc__, "github.com/sIncerass/powernorm", "fairseq/modules/norms/mask_powernorm.py")
    found = Differences()
    train(peer, found, undone=False)
    train(peer, found, undone=True)
    found.write(peer, __file__, hidden_size=HIDDEN, groups=GROUPS, warmup=WARMUP, steps=STEPS, dtype="float64")


def train(peer: Peer, found: Differences, *, undone: bool) -> None:
    ours = PowerNorm(HIDDEN, groups=GROUPS, warmup=WARMUP).double()
    theirs = peer.module.MaskPowerNorm(HIDDEN, group_num=GROUPS, warmup_iters=WARMUP).double()
    if undone:
        theirs.gp.register_forward_hook(lambda _, __, x: undo(theirs, x))
    for step in range(STEPS):
        x, dy = (1 + step % 3) * draw(7, 4, HIDDEN, seed=2 * step), draw(7, 4, HIDDEN, seed=2 * step + 1)
        given = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        results = [norm(one) for norm, one in zip((ours, theirs), given, strict=True)]
        for norm, y in zip((ours, theirs), results, strict=True):
            norm.zero_grad()
            y.backward(dy)
        when = "warm-up" if step < WARMUP else "after it, ratio undone" if undone else "after it"
        found.add("y", *results)
        found.add(f"gradient of x, {when}", *[one.grad for one in given])
        for name in ("weight", "bias"):
            found.add(f"gradient of {name}", getattr(ours, name).grad, getattr(theirs, name).grad)
            for norm in (ours, theirs):
                getattr(norm, name).data -= LR * getattr(norm, name).grad
    found.add("running quadratic mean φ", ours.second_moment, theirs.running_phi)
    found.add("running gradient mean ν", ours.gradient_mean, (1 - theirs.abkw) * theirs.ema_gz)
    x = draw(7, 4, HIDDEN, seed=99)
    found.add("y in evaluation", ours.eval()(x), theirs.eval()(x))


def undo(theirs: Any, x: Tensor) -> None:
    """Multiply the gradient that reaches the scaled input x by √(m + ε) / √(φ + ε), after the warm-up."""
    if theirs.training and theirs.iters.item() + 1 > WARMUP:
        batch = x.detach().square().mean((0, 1))
        ratio = ((batch + theirs.eps) / (theirs.running_phi.flatten() + theirs.eps)).sqrt()
        x.register_hook(lambda gradient: gradient * ratio)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
