from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from assay.errors import UserError
from assay.models.vision import networks


def build(channels: int = 3, num_classes: int = 10, **options: Any) -> Any:
    return networks.build("resnet", options, image_size=32, channels=channels, num_classes=num_classes)


@pytest.mark.parametrize(("depth", "published"), [(20, 0.27e6), (32, 0.46e6), (44, 0.66e6), (56, 0.85e6)])
def test_parameters_of_the_published_depths(depth: int, published: float) -> None:
    assert sum(p.numel() for p in build(depth=depth).parameters()) == pytest.approx(published, rel=0.025)


def test_blocks_with_silent_branches_are_their_skips() -> None:
    torch.manual_seed(0)
    network = build(widths=(4, 6), depth=6).eval()
    for block in network.blocks:
        nn.init.zeros_(block.branch[4].weight)
    x = torch.randn(2, 3, 8, 8)
    stem, skip = network.stem(x), network.blocks[1].skip
    expected = network.classifier(skip(stem).relu().mean((2, 3)))
    torch.testing.assert_close(network(x), expected)


def test_each_group_but_the_first_halves_the_image() -> None:
    network = build(widths=(4, 6, 8), depth=14)
    x, sizes = torch.zeros(1, 3, 16, 16), []
    x = network.stem(x)
    for block in network.blocks:
        x = block(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(4, 16, 16)] * 2 + [(6, 8, 8)] * 2 + [(8, 4, 4)] * 2


@pytest.mark.parametrize("depth", [2, 10, 21])
def test_impossible_depth(depth: int) -> None:
    with pytest.raises(UserError, match=rf"3 widths has a depth of 8, 14, 20 .., not {depth}"):
        build(depth=depth)


def test_unknown_network_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown network 'resnt'; nearest: resnet"):
        networks.build("resnt", image_size=8, channels=1, num_classes=2)
