"""Poincaré ResNets: their start, their memory, and how they stand out-of-distribution images and attacks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from assay.claims.digits import accuracy, digits, train_classifier
from assay.claims.experiments import experiments
from assay.models.vision import networks
from assay.nn.residual.poincare import PoincareConv2d, PoincareLinear, ball, explicit
from assay.nn.residual.poincare.linear import Start


@experiments.register("poincare-norms")
def poincare_norms(
    seed: int,
    *,
    layer: Literal["linear", "convolution"] = "linear",
    depth: int = 20,
    channels: int = 16,
    curvature: float = 0.1,
) -> dict[str, float]:
    """``identity`` and ``normal``: the mean tangent norm after ``depth`` fresh layers over that before, by start.

    Convolutions have 3 × 3 pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, channels, 8, 8, generator=generator, dtype=torch.float64) / channels**0.5

    def after(start: Start) -> Tensor:
        torch.manual_seed(seed)
        y = x if layer == "convolution" else x.movedim(1, -1)
        for _ in range(depth):
            if layer == "convolution":
                y = PoincareConv2d(channels, channels, 3, curvature, start=start).double()(y)
            else:
                y = PoincareLinear(channels, channels, curvature, start=start).double()(y)
        return y if layer == "convolution" else y.movedim(-1, 1)

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = x.norm(dim=1).mean()
        return {start: (after(start).norm(dim=1).mean() / before).item() for start in ("identity", "normal")}


@experiments.register("poincare-graph")
def poincare_graph(seed: int, *, points: int = 4096, dim: int = 16, curvature: float = 0.1) -> dict[str, float]:
    """``ARM.bytes`` that are kept for the backward pass of log₀(exp₀(f) ⊕ exp₀(x)), and ``ARM.steps`` of its graph,
    with derivatives by hand (``explicit``) and by autograd (``plain``).
    """
    generator = torch.Generator().manual_seed(seed)
    f, x = (torch.randn(points, dim, generator=generator).requires_grad_() for _ in range(2))
    found: dict[str, float] = {}
    for arm, maps in (("explicit", explicit), ("plain", ball)):
        held: dict[int, int] = {}

        def hold(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            sums = maps.mobius_add(maps.exp0(f, curvature), maps.exp0(x, curvature), curvature)
            y = maps.log0(sums, curvature)
        found |= {f"{arm}.bytes": float(sum(held.values())), f"{arm}.steps": float(steps_behind(y))}
    return found


def steps_behind(y: Tensor) -> int:
    seen: set[Any] = set()
    waiting = [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return len(seen)


@experiments.register("poincare-digits")
def poincare_digits(
    seed: int, *, known: int = 6, steps: int = 150, lr: float = 1e-2, depth: int = 8, epsilon: float = 0.25
) -> dict[str, float]:
    """A ResNet and a Poincaré ResNet of the same widths, trained on the digits below ``known``.

    ``ARM.accuracy``; ``ARM.auroc``: how often the free energy, −log Σ exp(logits), of a digit that training had is
    below that of one it had not; ``ARM.attacked``: the accuracy after a step of ``epsilon`` deviations of each pixel
    along the sign of the loss's gradient.
    """
    images, labels, test_images, test_labels = digits(seed)
    images, test_images = images.unsqueeze(1), test_images.unsqueeze(1)
    old, inside = labels < known, test_labels < known
    found: dict[str, float] = {}
    for arm, name in (("plain", "resnet"), ("poincare", "poincare-resnet")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            options = {"widths": (8, 16, 32), "depth": depth}
            model = networks.build(name, options, image_size=8, channels=1, num_classes=known)
        train_classifier(model, images[old], labels[old], steps=steps, batch_size=64, lr=lr, seed=seed)
        model.eval()
        with torch.no_grad():
            score = model(test_images).logsumexp(-1)
        attacked = fast_gradient_sign(model, test_images[inside], test_labels[inside], epsilon)
        found |= {
            f"{arm}.accuracy": accuracy(model, test_images[inside], test_labels[inside]),
            f"{arm}.auroc": auroc(score[inside], score[~inside]),
            f"{arm}.attacked": accuracy(model, attacked, test_labels[inside]),
        }
    return found


def auroc(inside: Float[Tensor, " m"], outside: Float[Tensor, " n"]) -> float:
    """The share of pairs in which the score inside is the larger; ties count half."""
    difference = inside[:, None] - outside
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()


def fast_gradient_sign(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Goodfellow et al., 2014, arXiv:1412.6572."""
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), labels), images)
    return (images + epsilon * gradient.sign()).detach()
