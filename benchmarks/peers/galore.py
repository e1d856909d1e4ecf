"""GaLore and Fira beside the packages of their authors, over training steps: python benchmarks/peers/galore.py

Needs the packages fira and galore-torch; bitsandbytes, of which neither method makes use, may be absent. Matrices of
three shapes go 25 steps from the same start with the same gradients in float32, whose size changes from step to step;
the basis is renewed every 7 steps. The moments stay as they are then, so the sign that a singular vector happens to
have matters: both ask the same routine for it, with the same matrix.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from clones import Differences
from torch import Tensor, nn

from assay.files import write_json
from assay.optim.fira import Fira
from assay.optim.galore import GaLore

with patch.dict(sys.modules, dict.fromkeys(("bitsandbytes", "bitsandbytes.optim.optimizer"), MagicMock())):
    import fira
    import galore_torch

SHAPES = ((12, 7), (7, 12), (9, 9))
STEPS, RANK, GAP, SCALE = 25, 3, 7, 0.25
OPTIONS: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}


def main() -> None:
    found = Differences()
    for name, ours, theirs, factor in (
        ("galore", GaLore, galore_torch.GaLoreAdamW, "scale"),
        ("fira", Fira, fira.FiraAdamW, "alpha"),
    ):
        one, other = weights(), weights()
        group = {"params": other, "rank": RANK, "update_proj_gap": GAP, factor: SCALE, "proj_type": "std"}
        mine = ours(one, rank=RANK, update_proj_gap=GAP, scale=SCALE, **OPTIONS)
        peer = theirs([group], no_deprecation_warning=True, **OPTIONS)
        for step in range(STEPS):
            before = [weight.detach().clone() for weight in other]
            for place, (a, b) in enumerate(zip(one, other, strict=True)):
                a.grad = (1 + step % 4) ** 2 * draw(*a.shape, seed=100 * step + place)
                b.grad = a.grad.clone()
            mine.step()
            peer.step()
            for a, b, start in zip(one, other, before, strict=True):
                found.add(f"{name}: weights", a, b)
                found.add(f"{name}: change of weights", a - start, b - start)
    rows = {name: {"difference": one, "value": size} for name, (one, size) in found.largest.items()}
    for name, row in rows.items():
        print(f"{name:24}  largest difference {row['difference']:.2e}  largest value {row['value']:.3g}")
    versions = {name: importlib.metadata.version(name) for name in ("fira", "galore-torch", "torch")}
    setting = {"shapes": SHAPES, "steps": STEPS, "rank": RANK, "update_proj_gap": GAP, "scale": SCALE, **OPTIONS}
    write_json(Path(__file__).with_suffix(".json"), {"versions": versions, "setting": setting, "largest": rows})


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(draw(*shape, seed=place)) for place, shape in enumerate(SHAPES)]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
