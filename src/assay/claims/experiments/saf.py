"""Wrong labels and sharp minima: SAF and MESA beside plain training, SAM and a penalty that knows no trajectory.

An MLP of two hidden layers is trained by momentum on digits of which a share has a wrong label. ``uniform`` has SAF's
penalty with the uniform distribution for the earlier outputs: what smoothing alone does.

Du, Zhou, Feng, Tan, Zhou, 2022, arXiv:2205.14083; SAM: Foret et al., 2020, arXiv:2010.01412.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.claims.digits import accuracy, digits
from assay.claims.experiments import experiments
from assay.losses.mesa import MESA, trajectory_penalty
from assay.losses.saf import SAF
from assay.measures.curvature import largest_eigenvalue

ARMS = ("sgd", "sam", "saf", "mesa", "uniform")


@experiments.register("saf-digits")
def saf_digits(
    seed: int,
    *,
    epochs: int = 40,
    batch_size: int = 64,
    hidden_size: int = 128,
    lr: float = 0.1,
    noise: float = 0.2,
    radius: float = 0.05,
    start: int = 5,
    gap: int = 3,
    lanczos: int = 40,
) -> dict[str, float]:
    """``ARM.accuracy`` on test images, and ``ARM.eigenvalue``: the largest of the Hessian of the training loss.

    ``start`` and ``gap`` are in epochs, ``radius`` is SAM's.
    """
    images, labels, test_images, test_labels = digits(seed)
    labels = with_noise(labels, noise, seed)
    found: dict[str, float] = {}
    for arm in ARMS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Sequential(
                nn.Flatten(), nn.Linear(64, hidden_size), nn.ReLU(), nn.Linear(hidden_size, hidden_size), nn.ReLU(),
                nn.Linear(hidden_size, 10),
            )  # fmt: skip
        objective = Penalised(arm, model, labels, start=start, gap=gap, epochs=epochs)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        generator = torch.Generator().manual_seed(seed)
        steps = epochs * math.ceil(len(labels) / batch_size)
        step = 0
        for epoch in range(epochs):
            for index in torch.randperm(len(labels), generator=generator).split(batch_size):
                optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
                objective.begin_step(step, step / steps)
                loss = partial(objective, images[index], index, epoch)
                if arm == "sam":
                    sharpness_aware_gradients(model, loss, radius)
                else:
                    optimizer.zero_grad()
                    loss().backward()
                optimizer.step()
                step += 1
        whole = partial(cross_entropy, model, images, labels)
        draws = torch.Generator().manual_seed(seed)
        top = largest_eigenvalue(whole, list(model.parameters()), steps=lanczos, generator=draws)
        found |= {f"{arm}.accuracy": accuracy(model, test_images, test_labels), f"{arm}.eigenvalue": top.value}
    return found


def cross_entropy(model: nn.Module, images: Tensor, labels: Int[Tensor, " count"]) -> Float[Tensor, ""]:
    return F.cross_entropy(model(images), labels)


class Penalised:
    """The loss of an arm: cross-entropy, with the penalties at their papers' settings."""

    def __init__(
        self, arm: str, model: nn.Module, labels: Int[Tensor, " count"], *, start: int, gap: int, epochs: int
    ) -> None:
        self.arm, self.model, self.labels, self.start = arm, model, labels, start
        self.saf = SAF(len(labels), 10, start=start, gap=gap, weight=0.3 if arm == "saf" else 0.0)
        self.mesa = MESA(model, start=(start + 1) / epochs) if arm == "mesa" else None

    def begin_step(self, step: int, progress: float) -> None:
        if self.mesa is not None:
            self.mesa.begin_step(self.model, step, progress)

    def __call__(
        self, images: Float[Tensor, "batch 8 8"], index: Int[Tensor, " batch"], epoch: int
    ) -> Float[Tensor, ""]:
        logits, targets = self.model(images), self.labels[index]
        if self.mesa is not None:
            earlier = self.mesa.read(images)
            return self.mesa(logits[None], targets[None], None if earlier is None else earlier[None])
        if self.arm == "saf":
            return self.saf(logits, targets, index, epoch)
        loss = F.cross_entropy(logits, targets)
        if self.arm == "uniform" and epoch > self.start:
            loss = loss + 0.3 * trajectory_penalty(logits, torch.zeros_like(logits), 5.0).mean()
        return loss


def with_noise(labels: Int[Tensor, " count"], share: float, seed: int) -> Int[Tensor, " count"]:
    """Labels of which that share is another class, drawn uniformly."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + torch.randint(1, 10, (len(chosen),), generator=generator)) % 10
    return noisy


def sharpness_aware_gradients(model: nn.Module, loss: Callable[[], Tensor], radius: float) -> None:
    """Leave in ``model`` the gradients at the weights moved by ``radius`` up the gradient; the weights stay."""
    parameters: list[Tensor] = [*model.parameters()]
    model.zero_grad()
    slopes = torch.autograd.grad(loss(), parameters)
    norm = torch.nn.utils.get_total_norm(slopes)
    moves = [slope * (radius / (norm + 1e-12)) for slope in slopes]
    with torch.no_grad():
        torch._foreach_add_(parameters, moves)
    loss().backward()
    with torch.no_grad():
        torch._foreach_sub_(parameters, moves)
