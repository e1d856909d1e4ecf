"""The transfer's learning rates and starts beside the package mup: python benchmarks/peers/mup_rates.py

mup (PyPI, version 1.0.0) scales decays so that rate times decay stays, which is the transfer with ``exponent=1``. It
divides logits by r = width / proxy width where the transfer divides the head's rate and start by r. So both networks
are trained alike, in float64, and their logits, and the weights that count, are compared after every step. The decay
of embedding and head, which the rule sets to 0 and mup does not know of, is 0 in both.
"""

from __future__ import annotations

from pathlib import Path

import mup
import torch
import torch.nn.functional as F
from clones import Differences, draw
from torch import Tensor, nn

from assay.files import write_json
from assay.optim import build_optimizer, optimizers
from assay.optim.transfer.weight_decay_scaling import WeightDecayScaling
from assay.slots import Component

PROXY, WIDTHS, TOKENS, STEPS, LR, DECAY, STD = 16, (16, 32, 128), 11, 25, 0.01, 0.3, 0.02


class Network(nn.Module):
    def __init__(self, width: int, head: type[nn.Linear]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = head(width, TOKENS, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(F.layer_norm(x + self.down(F.gelu(self.up(x))), x.shape[-1:]))


def main() -> None:
    found = Differences()
    for width in WIDTHS:
        theirs, ours = Network(width, mup.MuReadout).double(), Network(width, nn.Linear).double()
        mup.set_base_shapes(theirs, Network(PROXY, mup.MuReadout), delta=Network(2 * PROXY, mup.MuReadout))
        transfer = WeightDecayScaling(width, width=PROXY, exponent=1.0)
        start(theirs, ours, transfer)
        found.add("start of the matrices", ours.up.weight, theirs.up.weight)
        found.add("start of the head", ours.head.weight, theirs.head.weight * PROXY / width)
        vectors = [p for p in theirs.parameters() if p.ndim == 1] + [theirs.embedding.weight, theirs.head.weight]
        groups = [{"params": [theirs.up.weight, theirs.down.weight]}, {"params": vectors, "weight_decay": 0.0}]
        options = {"betas": (0.9, 0.95), "eps": 1e-30}
        other = mup.MuAdamW(groups, lr=LR, weight_decay=DECAY, **options)
        component = Component.parse(optimizers, {"name": "adamw", "lr": LR, "weight_decay": DECAY, **options})
        one = build_optimizer(component, ours, transfer)
        for step in range(STEPS):
            tokens = draw(2, 64, seed=step).abs().mul(4).long().clamp(max=TOKENS - 1)
            logits = [model(tokens[0]) for model in (ours, theirs)]
            found.add("logits", *logits)
            for each, optimizer in zip(logits, (one, other), strict=True):
                optimizer.zero_grad()
                F.cross_entropy(each, tokens[1]).backward()
                optimizer.step()
        for name, mine in ours.named_parameters():
            factor = PROXY / width if name.startswith("head") else 1.0
            found.add("weights after the last step", mine, factor * theirs.get_parameter(name))
    largest = {name: {"difference": d, "value": v} for name, (d, v) in found.largest.items()}
    setting = {"proxy": PROXY, "widths": WIDTHS, "steps": STEPS, "dtype": "float64"}
    figures = {"package": "mup 1.0.0", "torch": torch.__version__, "setting": setting, "largest": largest}
    write_json(Path(__file__).with_suffix(".json"), figures)
    for name, (difference, value) in found.largest.items():
        print(f"{name:30} {difference:.1e} of {value:.1e}")


def start(theirs: Network, ours: Network, transfer: WeightDecayScaling) -> None:
    """Both from the same random numbers, each by its own rule; biases are 0."""
    for model, normal in ((theirs, mup.init.normal_), (ours, nn.init.normal_)):
        torch.manual_seed(0)
        for name, p in model.named_parameters():
            if p.ndim == 1:
                nn.init.zeros_(p)
            else:
                (nn.init.normal_ if name.startswith("embedding") else normal)(p, std=STD)
    transfer.initialize(ours)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
