"""Window retention beside RMT's, on equal weights: python benchmarks/peers/gated_swinrmt.py CLONE

CLONE is a clone of github.com/qhfan/RMT, whose retention along rows and columns Gated-SwinRMT puts into windows,
behind a gate. The gated network has no repository. Compared, without the gate, over steps of gradient descent in
float64, are

  the map       one window as large as the map, which is what RMT computes; both with their local context
  its windows   a map cut into windows, each of which RMT sees by itself; without local context, which crosses them

Each of the two trains its own weights. Decays and angles are in float32 on both sides.
"""

from __future__ import annotations

from typing import Any

import torch
from clones import Differences, Peer, draw
from torch import Tensor

from assay.nn.attention.gated_swinrmt import WindowRetention

HIDDEN, HEADS, START, RANGE, STEPS, LR = 16, 4, 2.0, 4.0, 20, 0.5
NAMES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "local": "lepe.conv", "output": "out_proj"}
ABSENT = ("timm", "timm.models", "timm.models.layers", "timm.models.vision_transformer", "timm.models.registry",
          "fvcore", "fvcore.nn", "einops")  # fmt: skip


def main() -> None:
    peer = Peer(__doc__, "github.com/qhfan/RMT", "classfication_release/RMT.py", absent=ABSENT)
    found = Differences()
    train(peer, found, (5, 7), window=7, label="the map")
    train(peer, found, (6, 9), window=3, label="its windows")
    found.write(peer, __file__, hidden_size=HIDDEN, num_heads=HEADS, steps=STEPS, dtype="float64")


def train(peer: Peer, found: Differences, size: tuple[int, int], *, window: int, label: str) -> None:
    ours, theirs = alike(peer, window, local=label == "the map")
    tables = peer.module.RetNetRelPos2d(HIDDEN, HEADS, START, RANGE)
    for step in range(STEPS):
        x, target = draw(2, *size, HIDDEN, seed=2 * step), draw(2, *size, HIDDEN, seed=2 * step + 1)
        given = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        results = [ours(given[0]), by_windows(theirs, tables, given[1], window)]
        for module, y in zip((ours, theirs), results, strict=True):
            module.zero_grad()
            (y - target).square().mean().backward()
        found.add(f"{label}: y", *results)
        found.add(f"{label}: gradient of x", *[one.grad for one in given])
        for mine, other in NAMES.items():
            if mine != "local" or label == "the map":
                pair = ours.get_submodule(mine), theirs.get_submodule(other)
                for name in ("weight", "bias"):
                    found.add(f"{label}: gradient of {mine} {name}", *[getattr(one, name).grad for one in pair])
                    for one in pair:
                        getattr(one, name).data -= LR * getattr(one, name).grad


def alike(peer: Peer, window: int, *, local: bool) -> tuple[WindowRetention, Any]:
    ours = WindowRetention(HIDDEN, HEADS, window=window, gate=False, decay_start=START, decay_range=RANGE).double()
    theirs = peer.module.VisionRetentionChunk(HIDDEN, HEADS).double()
    for index, (mine, other) in enumerate(NAMES.items()):
        for name in ("weight", "bias"):
            parameter = getattr(ours.get_submodule(mine), name)
            values = draw(*parameter.shape, seed=1000 + index) * (0.0 if mine == "local" and not local else 0.25)
            parameter.data.copy_(values)
            getattr(theirs.get_submodule(other), name).data.copy_(values)
    return ours, theirs


def by_windows(theirs: Any, tables: Any, x: Tensor, window: int) -> Tensor:
    """What RMT makes of each window, put together again."""
    height, width = x.shape[1:3]
    rows = []
    for band in x.split(min(window, height), 1):
        pieces = band.split(min(window, width), 2)
        places = [tables(piece.shape[1:3], chunkwise_recurrent=True) for piece in pieces]
        rows.append(torch.cat([theirs(piece, place) for piece, place in zip(pieces, places, strict=True)], 2))
    return torch.cat(rows, 1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
