"""Random labels learned by heart, drawn anew again and again: how well a network still learns at the end.

An MLP of two hidden layers keeps being trained on the same digits while all labels are redrawn every so many steps: a
plain one, one with layer normalization before its non-linearities, and one with Normalize-and-Project besides. A
network that loses plasticity ends later tasks at a higher loss than the first.

Lyle, Zheng, Khetarpal, Martens, van Hasselt, Pascanu, Dabney, 2024, arXiv:2407.01800.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.claims.digits import batches, digits
from assay.claims.experiments import experiments
from assay.nn.norm.layer_norm import LayerNorm
from assay.optim.constraint.none import Unconstrained
from assay.optim.constraint.normalize_and_project import NormalizeAndProject


class Classifier(nn.Module):
    """64 pixels to logits of 10 classes; norms take the place of the hidden biases."""

    def __init__(self, hidden_size: int, *, normed: bool) -> None:
        super().__init__()
        sizes = [64, hidden_size, hidden_size]
        self.hidden = nn.ModuleList(nn.Linear(a, b, bias=not normed) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(LayerNorm(hidden_size) if normed else nn.Identity() for _ in self.hidden)
        self.head = nn.Linear(hidden_size, 10)

    def forward(self, x: Float[Tensor, "batch 64"]) -> Float[Tensor, "batch 10"]:
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            x = F.relu(norm(linear(x)))
        return self.head(x)


@experiments.register("label-resets")
def label_resets(
    seed: int,
    *,
    images: int = 128,
    resets: int = 24,
    steps: int = 100,
    batch_size: int = 32,
    hidden_size: int = 128,
    lr: float = 1e-3,
    compared: int = 5,
) -> dict[str, float]:
    """``ARM.first`` and ``ARM.last``: loss in nats over all images at the end of a task, mean of ``compared`` tasks.

    The arms are ``plain``, ``layer-norm`` and ``normalize-and-project``, whose gains and offsets are projected, too;
    Adam has one constant rate. ``ARM.rise`` is the last minus the first.
    """
    pixels = digits(seed)[0][:images].flatten(1)
    found: dict[str, float] = {}
    for arm in ("plain", "layer-norm", "normalize-and-project"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Classifier(hidden_size, normed=arm != "plain")
        projected = arm == "normalize-and-project"
        constraint = NormalizeAndProject(model, gains="project") if projected else Unconstrained()
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        generator = torch.Generator().manual_seed(seed)
        losses = []
        order = batches(images, steps=steps * resets, batch_size=batch_size, seed=seed)
        for step, index in enumerate(order, start=1):
            if (step - 1) % steps == 0:
                labels = torch.randint(10, (images,), generator=generator)
            loss = F.cross_entropy(model(pixels[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            constraint(step, lr)
            if step % steps == 0:
                with torch.no_grad():
                    losses.append(F.cross_entropy(model(pixels), labels).item())
        first, last = sum(losses[:compared]) / compared, sum(losses[-compared:]) / compared
        found |= {f"{arm}.first": first, f"{arm}.last": last, f"{arm}.rise": last - first}
    return found
