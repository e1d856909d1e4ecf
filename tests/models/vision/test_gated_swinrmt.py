from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import UserError
from assay.models.vision import networks

SMALL = {"widths": (8, 12), "depths": (2, 1), "num_heads": (2, 2), "patch_size": 1, "window": 3, "features": 16}


def build(image_size: int = 8, channels: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    options = {**SMALL, **options}
    return networks.build("gated-swinrmt", options, image_size=image_size, channels=channels, num_classes=5)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_is_the_network_written_with_channels_first() -> None:
    """The order of layers and sums, spelled out with functions on [batch, channels, height, width]."""
    network, images = build().eval(), draw(3, 2, 8, 8)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.copy_(draw(norm.num_features, seed=3))

    def last(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x.movedim(1, -1)).movedim(-1, 1)

    def grouped(layer: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, layer[0].weight, layer[0].bias, padding=1, groups=x.shape[1])

    def block(layer: Any, x: Tensor) -> Tensor:
        x = x + grouped(layer.place, x)
        x = x + last(layer.attention, last(layer.norm, x))
        hidden = F.gelu(last(layer.up, last(layer.mlp_norm, x)))
        return x + last(layer.down, hidden + grouped(layer.mlp_place, hidden))

    conv1, norm1, _, conv2, norm2, _, conv3, norm3, _, conv4, norm4 = network.patches
    x = norm4(conv4(F.gelu(norm3(conv3(F.gelu(norm2(conv2(F.gelu(norm1(conv1(images)))))))))))
    one, two, smaller, three = network.stages
    assert [layer.attention.shifted for layer in (one, two, three)] == [False, True, False]
    x = block(two, block(one, x))
    x = block(three, smaller[1](smaller[0](x)))
    x = F.silu(network.features[1](network.features[0](x)))
    assert x.shape[2:] == (4, 4)
    torch.testing.assert_close(network(images), network.classifier(x.mean((2, 3))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("patch_size", "side"), [(1, 16), (2, 8), (4, 4)])
def test_patches(patch_size: int, side: int) -> None:
    network = build(16, patch_size=patch_size)
    assert network.patches(draw(1, 16, 16, 2)).shape == (1, side, side, 8)


def test_a_gate_costs_a_square_matrix_a_block_in_either_variant() -> None:
    def count(**options: Any) -> int:
        return sum(p.numel() for p in build(**options).parameters())

    extra = 2 * (8 * 8 + 8) + (12 * 12 + 12)
    assert count() - count(gate=False) == extra
    assert count(variant="swat") - count(variant="swat", gate=False) == extra


def test_size_of_rmt_small() -> None:
    """27 million parameters (Fan et al., table 2); its last stage attends in two dimensions, with as many."""
    with torch.device("meta"):
        network = networks.build("gated-swinrmt", {"gate": False}, image_size=224, channels=3, num_classes=1000)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(27e6, rel=0.05)


def test_learns() -> None:
    """Two classes: a bright left or right half."""
    network = build(channels=1)
    images, labels = draw(32, 1, 8, 8) / 2, torch.arange(32) % 2
    images[labels == 0, :, :, :4] += 1
    images[labels == 1, :, :, 4:] += 1
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1,)}, "not 2, 1 and 2 of them"),
        ({"patch_size": 4, "image_size": 4}, "2 stages after patches of 4 leave nothing of 4 pixels"),
        ({"variant": "none"}, "network 'gated-swinrmt', option variant='none'"),
        ({"window": 0}, "option window=0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)
