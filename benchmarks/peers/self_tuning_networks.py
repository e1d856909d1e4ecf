"""Self-tuning networks beside their authors' layers and maps: python benchmarks/peers/self_tuning_networks.py CLONE

CLONE is a clone of github.com/asteroidhouse/self-tuning-networks. Layers get the same weights, inputs and
hyper-parameters of each example in float64, and their outputs and gradients are compared; then the entropy of
perturbations, the perturbations themselves from one state of torch's generator, and the maps to bounded values.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from clones import Differences, Peer, draw
from torch import Tensor, nn

from assay.optim.self_tuning import Hyperparameter, Hyperparameters, ResponsiveConv2d, ResponsiveLinear

REPOSITORY = "github.com/asteroidhouse/self-tuning-networks"
NAMES = {
    "weight": "elem_weight",
    "bias": "elem_bias",
    "response_weight": "hnet_weight",
    "response_bias": "hnet_bias",
    "gates.weight": "htensor_to_scalars.weight",
    "scale": "elem_scalar",
}
BATCH, COUNT = 7, 3


def main() -> None:
    found = Differences()
    peer = Peer(__doc__, REPOSITORY, "cnn/hypermodels/hyperlinear.py")
    layers(
        found, "linear", ResponsiveLinear(6, 5, COUNT), peer.module.HyperLinear(6, 5, COUNT), draw(BATCH, 6, seed=0)
    )
    peer = Peer(__doc__, REPOSITORY, "cnn/hypermodels/hyperconv2d.py")
    ours, theirs = ResponsiveConv2d(2, 5, 3, COUNT, padding=1), peer.module.HyperConv2d(2, 5, 3, 1, COUNT)
    layers(found, "convolution", ours, theirs, draw(BATCH, 2, 8, 8, seed=0))
    peer = Peer(__doc__, REPOSITORY, "stn_utils/hyperparameter.py")
    maps(found, peer.module)
    found.write(peer, __file__, batch=BATCH, hyperparameters=COUNT, dtype="float64")


def layers(found: Differences, kind: str, ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    ours.double()
    theirs.double()
    for place, (mine, other) in enumerate(NAMES.items()):
        for model, name in ((ours, mine), (theirs, other)):
            parameter = model.get_parameter(name)
            parameter.data = draw(parameter.numel(), seed=place + 1).view_as(parameter)
    given = [(x.clone().requires_grad_(), draw(BATCH, COUNT, seed=50).requires_grad_()) for _ in range(2)]
    results = [model(*each) for model, each in zip((ours, theirs), given, strict=True)]
    for y in results:
        y.backward(draw(*y.shape, seed=51))
    found.add(f"{kind}: output", *results)
    for name, pair in zip(("inputs", "hyper-parameters"), zip(*given, strict=True), strict=True):
        found.add(f"{kind}: gradient of the {name}", *[each.grad for each in pair])
    for mine, other in NAMES.items():
        found.add(f"{kind}: gradients of weights", ours.get_parameter(mine).grad, theirs.get_parameter(other).grad)


def maps(found: Differences, module: Any) -> None:
    bounds = [(0.0, 0.9), (-1.0, math.inf), (-math.inf, 2.0)]
    ours = Hyperparameters([Hyperparameter(str(pair), 0.5, *pair, scale=0.7) for pair in bounds]).double()
    found.add("entropy", ours.entropy(), module.compute_entropy(ours.scales))
    h = draw(BATCH, COUNT, seed=0)
    for place, (pair, value) in enumerate(zip(bounds, ours.constrained(h).values(), strict=True)):
        found.add("bounded values", value, module.project(h[:, place], *pair))
    torch.manual_seed(0)
    theirs = module.perturb(ours.values, ours.scales, BATCH)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    found.add("perturbed values", ours.perturbed(BATCH), theirs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
