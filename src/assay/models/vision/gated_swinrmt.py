"""Gated-SwinRMT: a vision transformer of window retention, in stages that halve the image and widen it.

    x ← x + conv(x),    x ← x + retention(norm(x)),    x ← x + MLP(norm(x))
    MLP(z) = (h + conv(h)) W,    h = gelu(z W′)

with depthwise 3 × 3 convolutions. Every other block of a stage has shifted windows. Four convolutions make patches,
one of stride 2 stands between stages, and a linear map, batch norm, SiLU and the mean over the image before the
classifier. Without gates, and with windows that cover the image, it is RMT with decomposed attention in every stage.

Maity, Mondal, Roy, 2026, arXiv:2604.06014; the network around the attention is that of RMT, Fan et al., 2023,
arXiv:2309.11523, of which the paper changes the attention. Sizes follow RMT-S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from assay.errors import UserError
from assay.models.vision import networks
from assay.nn.attention.gated_swinrmt import Variant, WindowRetention


@networks.register("gated-swinrmt")
class GatedSwinRMT(nn.Module):
    """A stage per entry of ``widths``; ``patch_size`` is what its first four convolutions shrink the image by.

    ``mlp_ratio`` is the width of an MLP over that of its stage, ``features`` are before the classifier. Raises
    ``UserError`` if ``widths``, ``depths`` and ``num_heads`` are not equally many, or the image has fewer pixels than
    the stages halve it.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        num_classes: int,
        *,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        depths: tuple[int, ...] = (3, 4, 18, 4),
        num_heads: tuple[int, ...] = (4, 4, 8, 16),
        patch_size: Literal[1, 2, 4] = 4,
        window: Annotated[int, Field(gt=0)] = 7,
        variant: Variant = "retention",
        gate: bool = True,
        decay_start: float = 2.0,
        decay_range: float = 4.0,
        mlp_ratio: Annotated[float, Field(gt=0)] = 3.0,
        features: Annotated[int, Field(gt=0)] = 1024,
    ) -> None:
        super().__init__()
        if not len(widths) == len(depths) == len(num_heads) > 0:
            raise UserError(
                f"gated-swinrmt needs a width, a depth and a number of heads for every stage, "
                f"not {len(widths)}, {len(depths)} and {len(num_heads)} of them"
            )
        if image_size < patch_size * 2 ** (len(widths) - 1):
            raise UserError(
                f"{len(widths)} stages after patches of {patch_size} leave nothing of {image_size} pixels"
            )
        attention = {
            "window": window,
            "variant": variant,
            "gate": gate,
            "decay_start": decay_start,
            "decay_range": decay_range,
        }
        self.patches = patches(channels, widths[0], patch_size)
        self.stages = nn.Sequential()
        for stage, (width, depth, heads) in enumerate(zip(widths, depths, num_heads, strict=True)):
            if stage:
                self.stages.append(ChannelsLast(nn.Conv2d(widths[stage - 1], width, 3, 2, 1), nn.BatchNorm2d(width)))
            for number in range(depth):
                options = {**attention, "shifted": number % 2 == 1}
                self.stages.append(Block(width, heads, round(mlp_ratio * width), options))
        self.features = ChannelsLast(nn.Conv2d(widths[-1], features, 1), nn.BatchNorm2d(features), nn.SiLU())
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        x = self.features(self.stages(self.patches(x.movedim(1, -1))))
        return self.classifier(x.mean((1, 2)))


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int, hidden: int, attention: dict[str, Any]) -> None:
        super().__init__()
        self.place = depthwise(width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = WindowRetention(width, num_heads, **attention)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, hidden)
        self.mlp_place = depthwise(hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "batch height width hidden"]) -> Float[Tensor, "batch height width hidden"]:
        x = x + self.place(x)
        x = x + self.attention(self.norm(x))
        hidden = F.gelu(self.up(self.mlp_norm(x)))
        return x + self.down(hidden + self.mlp_place(hidden))


class ChannelsLast(nn.Sequential):
    """Layers for images with their channels first, applied to images with their channels last."""

    def forward(self, x: Float[Tensor, "batch height width before"]) -> Float[Tensor, "batch high wide after"]:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


def depthwise(width: int) -> ChannelsLast:
    return ChannelsLast(nn.Conv2d(width, width, 3, padding=1, groups=width))


def patches(channels: int, width: int, patch_size: int) -> ChannelsLast:
    """Four 3 × 3 convolutions with batch norm, the first and the third of which halve the image as needed."""
    layers: Sequence[tuple[int, int, int]] = (
        (channels, width // 2, 2 if patch_size > 1 else 1),
        (width // 2, width // 2, 1),
        (width // 2, width, 2 if patch_size > 2 else 1),
        (width, width, 1),
    )
    built = ChannelsLast()
    for number, (before, after, stride) in enumerate(layers):
        if number:
            built.append(nn.GELU())
        built.append(nn.Conv2d(before, after, 3, stride, 1))
        built.append(nn.BatchNorm2d(after))
    return built
