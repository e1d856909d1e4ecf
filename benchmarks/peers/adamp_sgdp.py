"""AdamP and SGDP beside the package of their authors: a small convolutional network, step by step.

Run by hand where it is installed: ``pip install adamp``. Both start from the same weights and see the same batches of
random images. Weights after each step are compared; how often each of the two views is taken for scale-invariant is
counted, so that it shows that both are. The figures go to ``adamp_sgdp.json`` beside this file.
"""

from __future__ import annotations

import collections
import copy
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import adamp as peer
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.optim import adamp as ours
from assay.optim import sgdp

STEPS = 60
CASES: dict[str, tuple[type, type, float, dict[str, Any]]] = {
    "adamp": (ours.AdamP, peer.AdamP, 0.01, {"betas": (0.9, 0.999), "weight_decay": 0.01}),
    "adamp without decay": (ours.AdamP, peer.AdamP, 0.01, {"betas": (0.9, 0.95), "weight_decay": 0.0}),
    "sgdp": (sgdp.SGDP, peer.SGDP, 0.1, {"momentum": 0.9, "weight_decay": 1e-3}),
    "sgdp with Nesterov": (sgdp.SGDP, peer.SGDP, 0.1, {"momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}),
    "sgdp without momentum": (sgdp.SGDP, peer.SGDP, 0.1, {"momentum": 0.0, "weight_decay": 1e-3}),
}


class Classifier(nn.Module):
    """Batch norm by channels after the convolutions; a layer norm, without gain, of a whole weight's product."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 20, 3, bias=False),
            nn.BatchNorm2d(20),
            nn.ReLU(),
            nn.Conv2d(20, 16, 3, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.mixed = nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.mixed(self.convolutions(images).mean((2, 3)))
        return self.head(F.layer_norm(hidden, hidden.shape[1:], eps=0.0))


def beside(name: str, dtype: torch.dtype) -> dict[str, Any]:
    make, make_peer, lr, options = CASES[name]
    torch.manual_seed(0)
    model = Classifier().to(dtype)
    other = copy.deepcopy(model)
    optimizer = make([{"params": list(model.parameters()), "role": "matrix", "decay": True}], lr, **options)
    theirs = make_peer(other.parameters(), lr=lr, **options)
    views: collections.Counter[str] = collections.Counter()
    largest = 0.0
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(16, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
        labels = torch.randint(5, (16,), generator=generator)
        for network, method in ((model, optimizer), (other, theirs)):
            method.zero_grad()
            F.cross_entropy(network(images), labels).backward()
        weights = list(model.parameters())
        found = ours.invariant_views(weights, [weight.grad for weight in weights], 0.1, 1e-8)
        views.update(str(view) for weight, view in zip(weights, found, strict=True) if weight.ndim > 1)
        optimizer.step()
        theirs.step()
        pairs = zip(model.parameters(), other.parameters(), strict=True)
        largest = max(largest, *((a - b).abs().max().item() for a, b in pairs))
    size = max(weight.abs().max().item() for weight in other.parameters())
    return {"largest difference": largest, "largest weight": size, "views": dict(views)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    figures = {
        "versions": {name: version(name) for name in ("torch", "adamp")},
        "steps": STEPS,
        "cases": {
            f"{name}, {str(dtype).removeprefix('torch.')}": beside(name, dtype)
            for name in CASES
            for dtype in (torch.float64, torch.float32)
        },
    }
    text = json.dumps(figures, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n")
    print(text)
