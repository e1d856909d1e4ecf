from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.errors import UserError
from assay.models.vision import networks
from assay.nn.residual.poincare import ball


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(**options: Any) -> Any:
    options = {"widths": (4, 5, 6), "depth": 8, "inference": "batch", **options}
    network = networks.build("poincare-resnet", options, image_size=8, channels=2, num_classes=3)
    for index, parameter in enumerate(network.parameters()):
        if parameter.ndim:
            parameter.data.add_(0.2 * draw(*parameter.shape, seed=index))
    return network


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


def test_is_the_network_of_hypll_layers() -> None:
    """Block by block on points of the ball, with that library's convolution, batch norm and linear map."""
    pytest.importorskip("hypll")
    from hypll.manifolds.poincare_ball import Curvature, PoincareBall
    from hypll.manifolds.poincare_ball.math.linalg import poincare_fully_connected
    from hypll.nn import HBatchNorm2d, HConvolution2d
    from hypll.tensors import ManifoldTensor

    c = 0.5
    manifold = PoincareBall(Curvature(c, constraining_strategy=lambda value: value))

    def to_ball(x: Tensor) -> Tensor:
        return ball.exp0(channels_last(x), c).movedim(-1, 1)

    def to_tangent(x: Tensor) -> Tensor:
        return ball.log0(channels_last(x), c).movedim(-1, 1)

    def convolution(x: Tensor, ours: Any) -> Tensor:
        outputs, inputs, size, _ = ours.weight.shape
        theirs = HConvolution2d(inputs, outputs, size, manifold, stride=ours.stride, padding=size // 2)
        theirs.weights.tensor.data.copy_(ours.weight.flatten(1).T)
        theirs.bias.data.copy_(ours.offset.flatten())
        return theirs(ManifoldTensor(x, manifold, man_dim=1)).tensor

    def norm(x: Tensor, ours: Any) -> Tensor:
        theirs = HBatchNorm2d(len(ours.bias), manifold, use_midpoint=True)
        theirs.norm.bias.data.copy_(ours.bias)
        theirs.norm.weight.data.copy_(ours.scale.square())
        return theirs(ManifoldTensor(x, manifold, man_dim=1)).tensor

    def relu(x: Tensor) -> Tensor:
        return to_ball(to_tangent(x).relu())

    network, images = build(curvature=c), draw(5, 2, 12, 12, seed=99) / 2
    x = relu(norm(convolution(to_ball(images), network.stem[0]), network.stem[1]))
    for block in network.blocks:
        first, first_norm, _, second, second_norm = block.branch
        branch = norm(convolution(relu(norm(convolution(x, first), first_norm)), second), second_norm)
        skip = x if isinstance(block.skip, nn.Identity) else convolution(x, block.skip)
        joined = ball.mobius_add(channels_last(branch), channels_last(skip), c).movedim(-1, 1)
        x = relu(joined)
    features = ball.exp0(to_tangent(x).mean((2, 3)), c)
    last = network.classifier
    logits = ball.log0(poincare_fully_connected(features, last.weight.T, last.offset, torch.tensor(c)), c)
    torch.testing.assert_close(network(images), logits, rtol=2e-3, atol=2e-4)


def test_learned_parameters_are_few_more_than_those_of_the_plain_network() -> None:
    """A batch norm has one scale in place of one per channel."""
    sizes = {"image_size": 32, "channels": 3, "num_classes": 10}
    options = {"widths": (8, 16, 32), "depth": 20}
    ours, plain = (networks.build(name, options, **sizes) for name in ("poincare-resnet", "resnet"))
    norms = [module.num_features for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]
    count = [sum(p.numel() for p in network.parameters()) for network in (ours, plain)]
    assert count[1] - count[0] == sum(norms) - len(norms)


def test_an_image_is_classified_by_itself_unless_by_the_batch_at_hand() -> None:
    images = draw(6, 2, 8, 8, seed=99)
    running, of_batch = build(inference="running"), build(inference="batch")
    for network in (running, of_batch):
        for _ in range(3):
            network(images)
        network.eval()
    torch.testing.assert_close(running(images[:1]), running(images)[:1], rtol=1e-4, atol=1e-5)
    assert (of_batch(images[:1]) - of_batch(images)[:1]).abs().max() > 1e-3


def test_learns() -> None:
    """Two classes: bright left or right half."""
    torch.manual_seed(0)
    network = networks.build(
        "poincare-resnet", {"widths": (4, 6), "depth": 6}, image_size=8, channels=1, num_classes=2
    )
    images, labels = draw(64, 1, 8, 8) / 2, torch.arange(64) % 2
    images[labels == 0, :, :, :4] += 1
    images[labels == 1, :, :, 4:] += 1
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


@pytest.mark.parametrize("option", [{"curvature": 0}, {"start": "zeros"}, {"inference": "none"}])
def test_wrong_options(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(UserError, match=f"network 'poincare-resnet', option {name}="):
        networks.build("poincare-resnet", option, image_size=8, channels=1, num_classes=2)
