"""Attacks beside torchattacks', in float64 from the same start: python benchmarks/peers/federated_adversarial.py

Run by hand where it is installed: ``pip install torchattacks``. The figures go to ``federated_adversarial.json``
beside this file: the largest difference of a pixel over all steps, for several radii, and the share of images that
both classify alike under attack.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchattacks
from clones import draw
from torch import nn

from assay.files import write_json
from assay.optim.federated import PGD

RADII = (0.01, 0.1, 0.5)
STEPS = (1, 3, 20)


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).double()
    images, labels = draw(40, 3, 8, 8, seed=0).sigmoid(), torch.arange(40) % 5
    model(images)
    model.eval()
    rows: list[dict[str, Any]] = []
    for radius in RADII:
        for steps in STEPS:
            for norm, theirs in (("linf", torchattacks.PGD), ("l2", torchattacks.PGDL2)):
                size = {"eps": radius, "alpha": radius / 3, "steps": steps}
                peer = theirs(model, **size, random_start=False)(images, labels)
                ours = PGD(radius, radius / 3, steps, norm=norm, random_start=False, bounds=(0.0, 1.0))
                attacked = ours(model, images, labels)
                same = (model(attacked).argmax(-1) == model(peer).argmax(-1)).double().mean().item()
                difference = (attacked - peer).abs().max().item()
                rows.append({"norm": norm, "radius": radius, "steps": steps, "difference": difference, "same": same})
                print(f"{norm:5} radius {radius:<5} steps {steps:<3} {difference:.1e}  {same:.0%}")
    write_json(
        Path(__file__).with_suffix(".json"),
        {"torchattacks": version("torchattacks"), "torch": torch.__version__, "dtype": "float64", "rows": rows},
    )


if __name__ == "__main__":
    main()
