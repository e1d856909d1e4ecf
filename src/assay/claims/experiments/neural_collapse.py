"""Neural collapse of perceptrons on digits: by weight decay, by depth, and in the model of features near others."""

from __future__ import annotations

import itertools
import math
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from assay.analysis.neural_collapse import classifier_inputs, nearby_features, neural_collapse
from assay.claims.digits import batches, digits
from assay.claims.experiments import experiments

Data = tuple[Float[Tensor, "count hidden"], Int[Tensor, " count"]]


@experiments.register("collapse-weight-decay")
def collapse_weight_decay(
    seed: int,
    *,
    width: int = 128,
    depth: int = 3,
    steps: int = 4000,
    lr: float = 0.05,
    weight_decay: float = 5e-3,
) -> dict[str, float]:
    """``features.N`` and ``head.N``: |ln NC1 − ln NC1 of the usual network| where the weight decay of the hidden
    layers, or of the classifier, is N times the usual ``weight_decay``, N in 0 and 2.

    The usual weight decay, learning rate and steps have about the product of the published training's first third.
    ``zero`` and ``double`` are ln NC1 of the hidden layers with N = 0 and N = 2 minus the usual; ``accuracy`` is the
    usual network's on its training data, on which features are measured.
    """
    images, labels, _, _ = digits(seed)
    data = images.flatten(1), labels
    start = {"features": 1.0, "head": 1.0}
    arms = {"usual": start} | {f"{part}.{n}": start | {part: float(n)} for part in start for n in (0, 2)}
    nc1: dict[str, float] = {}
    found: dict[str, float] = {}
    for arm, factors in arms.items():
        body, head = perceptron(seed, [64, *[width] * depth], 10)
        groups = [
            {"params": list(module.parameters()), "weight_decay": factors[part] * weight_decay}
            for part, module in (("features", body), ("head", head))
        ]
        model = nn.Sequential(body, head)
        fit(model, groups, data, steps=steps, lr=lr, seed=seed)
        nc1[arm] = math.log(neural_collapse(classifier_inputs(model, head, data[0]), labels).nc1)
        if arm == "usual":
            with torch.no_grad():
                found["accuracy"] = (model(data[0]).argmax(-1) == labels).double().mean().item()
        else:
            found[arm] = abs(nc1[arm] - nc1["usual"])
    return found | {"zero": nc1["features.0"] - nc1["usual"], "double": nc1["features.2"] - nc1["usual"]}


@experiments.register("collapse-layers")
def collapse_layers(
    seed: int, *, width: int = 128, layers: int = 5, steps: int = 1500, lr: float = 0.05, weight_decay: float = 5e-4
) -> dict[str, float]:
    """Hidden layers trained one by one, each with a classifier of its own on what those before it give.

    ``nc1`` and ``spread`` are those after the last layer over those of the pixels; ``nc1.worst`` and ``spread.worst``
    the largest ratio between a layer and the one before, above 1 where a layer undoes collapse.
    """
    images, labels, _, _ = digits(seed)
    x = images.flatten(1)
    course = [neural_collapse(x, labels)]
    for number in range(layers):
        body, head = perceptron(seed * 1000 + number, [x.shape[1], width], 10)
        model = nn.Sequential(body, head)
        groups = [{"params": list(model.parameters()), "weight_decay": weight_decay}]
        fit(model, groups, (x, labels), steps=steps, lr=lr, seed=seed)
        x = classifier_inputs(model, head, x)
        course.append(neural_collapse(x, labels))
    found: dict[str, float] = {}
    for name in ("nc1", "spread"):
        values = [cast(float, getattr(one, name)) for one in course]
        found |= {name: values[-1] / values[0], f"{name}.worst": max(b / a for a, b in itertools.pairwise(values))}
    return found


@experiments.register("collapse-nearby")
def collapse_nearby(
    seed: int,
    *,
    per_class: int = 20,
    betas: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0),
    weight_penalty: float = 0.005,
    feature_penalty: float = 0.005,
) -> dict[str, float]:
    """``spread.BETA``: tr S_W / tr S_B of the model's features with that β over that of the digits they start from.

    The pixels are brought to a mean square norm of 1.
    """
    images, labels, _, _ = digits(seed)
    chosen = torch.cat([(labels == k).nonzero().flatten()[:per_class] for k in range(10)])
    start, classes = images[chosen].flatten(1).double(), labels[chosen]
    start = start / start.square().sum(-1).mean().sqrt()
    before = neural_collapse(start, classes).spread
    penalties = {"weight_penalty": weight_penalty, "feature_penalty": feature_penalty}
    return {
        f"spread.{beta:g}": neural_collapse(nearby_features(start, classes, beta=beta, **penalties), classes).spread
        / before
        for beta in betas
    }


def perceptron(seed: int, widths: list[int], classes: int) -> tuple[nn.Sequential, nn.Linear]:
    """Hidden layers with ReLU, and the classifier on them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [(nn.Linear(before, after), nn.ReLU()) for before, after in itertools.pairwise(widths)]
        return nn.Sequential(*itertools.chain(*layers)), nn.Linear(widths[-1], classes)


def fit(model: nn.Module, groups: list[dict[str, object]], data: Data, *, steps: int, lr: float, seed: int) -> None:
    """Stochastic gradient descent with momentum 0.9 on the cross-entropy, in batches of 64.

    The learning rate is divided by 10 after each third of the steps.
    """
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(steps // 3, 1), gamma=0.1)
    x, labels = data
    for index in batches(len(labels), steps=steps, batch_size=64, seed=seed):
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), labels[index]).backward()
        optimizer.step()
        schedule.step()
