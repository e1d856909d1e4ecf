"""Gated-SwinRMT: attention along the rows, then the columns, of shifted windows, with decay by distance and a gate.

    G_ij = γ_h^|i − j|,    γ_h = 1 − 2^(−a − b h / H)  for head h of H

    retention   P = softmax(Q Kᵀ/√d + log G),  along rows, then along columns, from the same Q and K
                y = (σ(x W_g) ⊙ (P_column P_row V + LCE(V))) W_O
    swat        P = σ(Q Kᵀ/√d + s_h (i − j)) ⊙ G,    s_h = ∓2⁻ᵏ  for k = 1 .. H/2
                y = rms(P_column P_row V + LCE(V)) W_O,    V = silu(x W_a) ⊙ x W_b

The two passes give pairs of pixels the decay of their Manhattan distance. LCE, local context enhancement, is a
depthwise 5 × 5 convolution of the values, over the whole map. Queries and keys are turned by their place in the
window, counted along its rows.

``WindowRetention`` is the mixer of images. It looks both ways and needs height and width, so that it is not among the
``mixers`` of a decoder; ``GatedSwinRMT`` is: the retention of an image of one row, seen causally.

Maity, Mondal, Roy, 2026, arXiv:2604.06014. Decay, passes and LCE: Fan et al., 2023 (RMT), arXiv:2309.11523; windows:
Liu et al., 2021 (Swin), arXiv:2103.14030; balanced slopes: Fu et al., 2025 (SWAT), arXiv:2502.18845.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.errors import UserError
from assay.nn.attention.softmax import Place, SoftmaxAttention, shared
from assay.nn.mixer import mixers
from assay.nn.norm.rms_norm import RMSNorm

Variant = Literal["retention", "swat"]

LOCAL = 5
"""Pixels along each side of the local context."""


def log_decays(num_heads: int, a: float, b: float, device: torch.device | None = None) -> Float[Tensor, " heads"]:
    """log γ_h, in float32."""
    return torch.log1p(-torch.exp2(-a - b * torch.arange(num_heads, device=device) / num_heads))


def balanced_slopes(num_heads: int, device: torch.device | None = None) -> Float[Tensor, " heads"]:
    """s_h: −2⁻ᵏ for the first half of the heads and 2⁻ᵏ for the second, k = 1 .. H/2."""
    sizes = torch.exp2(-torch.arange(1.0, num_heads // 2 + 1, device=device))
    return torch.cat((-sizes, sizes))


class WindowRetention(nn.Module):
    """Windows of ``window`` × ``window`` pixels, or of the map's height or width where that is less.

    ``shifted`` moves them by half their size along sides that they do not cover; what wraps around the border is not
    seen from the other side of it, nor is padding. ``gate=False`` leaves out the gate, or that of the values.
    Raises ``UserError`` if the features cannot be cut into so many heads, or an odd number of heads have slopes.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        window: int = 7,
        shifted: bool = False,
        variant: Variant = "retention",
        gate: bool = True,
        decay_start: float = 2.0,
        decay_range: float = 4.0,
    ) -> None:
        super().__init__()
        head_dim, rest = divmod(hidden_size, num_heads)
        if rest or head_dim % 2:
            raise UserError(f"num_heads={num_heads} does not cut {hidden_size} features into heads of even size")
        if variant == "swat" and num_heads % 2:
            raise UserError(f"balanced slopes need an even number of heads, not num_heads={num_heads}")
        self.num_heads, self.head_dim = num_heads, head_dim
        self.window, self.shifted, self.variant = window, shifted, variant
        self.decay_start, self.decay_range = decay_start, decay_range
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.value_gate = nn.Linear(hidden_size, hidden_size) if variant == "swat" and gate else None
        self.gate = nn.Linear(hidden_size, hidden_size) if variant == "retention" and gate else None
        self.local = nn.Conv2d(hidden_size, hidden_size, LOCAL, padding=LOCAL // 2, groups=hidden_size)
        self.norm = RMSNorm(hidden_size) if variant == "swat" else None
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Float[Tensor, "batch height width hidden"]) -> Float[Tensor, "batch height width hidden"]:
        value = self.value(x)
        if self.value_gate is not None:
            value = F.silu(self.value_gate(x)) * value
        local = self.local(value.movedim(-1, 1)).movedim(1, -1)
        y = self.mix(self.query(x), self.key(x), value) + local
        if self.norm is not None:
            y = self.norm(y)
        if self.gate is not None:
            y = self.gate(x).sigmoid() * y
        return self.output(y)

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Float[Tensor, "batch height width hidden"]:
        """P_column P_row V of every window, put back in its place."""
        shape = query.shape[1:3]
        size = [min(self.window, side) for side in shape]
        shift = [self.window // 2 if self.shifted and self.window < side else 0 for side in shape]
        row_region, column_region = (
            regions(side, length, moved, query.device) for side, length, moved in zip(shape, size, shift, strict=True)
        )

        def windows(x: Tensor) -> Float[Tensor, "batch down across h w heads dim"]:
            padding = [-side % length for side, length in zip(shape, size, strict=True)]
            x = F.pad(x, (0, 0, 0, padding[1], 0, padding[0])).roll([-shift[0], -shift[1]], (1, 2))
            x = x.unflatten(2, (-1, size[1])).unflatten(1, (-1, size[0])).transpose(2, 3)
            return x.unflatten(-1, (self.num_heads, self.head_dim))

        query, key = (turned(windows(x)) for x in (query, key))
        mixed = windows(value)
        along_rows = self.weights(query, key, column_region)
        mixed = torch.einsum("bducnij,bducjnf->bducinf", along_rows, mixed)
        query, key, mixed = (x.transpose(3, 4) for x in (query, key, mixed))
        along_columns = self.weights(query, key, row_region.unsqueeze(1))
        mixed = torch.einsum("bducnij,bducjnf->bducinf", along_columns, mixed)
        mixed = mixed.transpose(3, 4).flatten(-2).transpose(2, 3).flatten(1, 2).flatten(2, 3)
        return mixed.roll(shift, (1, 2))[:, : shape[0], : shape[1]]

    def weights(
        self,
        query: Float[Tensor, "batch down across lines size heads dim"],
        key: Float[Tensor, "batch down across lines size heads dim"],
        region: Int[Tensor, "*windows size"],
    ) -> Float[Tensor, "batch down across lines heads size size"]:
        """P along the lines of the windows."""
        scores = torch.einsum("bducinf,bducjnf->bducnij", query, key) / math.sqrt(self.head_dim)
        place = torch.arange(query.shape[4], device=query.device)
        offset = place[:, None] - place
        decay = log_decays(self.num_heads, self.decay_start, self.decay_range, query.device)
        decay = decay[:, None, None] * offset.abs()
        seen = (region[..., :, None] == region[..., None, :])[..., None, None, :, :]
        if self.variant == "retention":
            return (scores + decay.to(scores.dtype)).masked_fill(~seen, -torch.inf).softmax(-1)
        tilt = balanced_slopes(self.num_heads, query.device)[:, None, None] * offset
        return (scores + tilt.to(scores.dtype)).sigmoid() * decay.exp().to(scores.dtype) * seen


def regions(length: int, size: int, shift: int, device: torch.device) -> Int[Tensor, "windows size"]:
    """What part of the side each pixel of its shifted windows is from: 0, 1 if it came around the border, 2 padding.

    Pixels of one window see each other if their numbers are equal.
    """
    padded = -(-length // size) * size
    place = torch.arange(padded, device=device) + shift
    region = (place >= padded).long().masked_fill(place % padded >= length, 2)
    return region.view(-1, size)


def turned(x: Float[Tensor, "batch down across h w heads dim"]) -> Float[Tensor, "batch down across h w heads dim"]:
    """Neighbouring features, as pairs, rotated by the place in the window times 10000^(−2j/(d − 2)), j < d/2."""
    height, width, half = x.shape[3], x.shape[4], x.shape[-1] // 2
    frequencies = 10000.0 ** -torch.linspace(0, 1, half, device=x.device)
    place = torch.arange(height * width, device=x.device).view(height, width, 1, 1)
    angles = place * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., ::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)


@mixers.register("gated-swinrmt")
class GatedSwinRMT(SoftmaxAttention):
    """One row, seen causally: P = softmax(QKᵀ/√d + (i − j) log γ) for j ≤ i, and those columns of the local context
    that are not in the future, w_t ⊙ V_(i − t) for t = 0, 1, 2, started at 0. Positions are the decoder's.
    ``gate=False`` leaves the gate out.
    """

    input_maps = (*SoftmaxAttention.input_maps, "gate_projection")

    def __init__(
        self,
        *context: Any,
        gate: bool = True,
        decay_start: float = 2.0,
        decay_range: float = 4.0,
        **options: Any,
    ) -> None:
        super().__init__(*context, **options)
        self.decay_start, self.decay_range = decay_start, decay_range
        self.local = nn.ParameterList(torch.zeros(self.num_kv_heads * self.head_dim) for _ in range(LOCAL // 2 + 1))
        self.gate_projection = (
            nn.Linear(self.hidden_size, self.num_heads * self.head_dim, bias=self.query.bias is not None)
            if gate
            else None
        )

    def mix(
        self,
        x: Float[Tensor, "batch time hidden"],
        query: Float[Tensor, "batch heads time dim"],
        key: Float[Tensor, "batch kv_heads keys dim"],
        value: Float[Tensor, "batch kv_heads keys dim"],
        mask: Bool[Tensor, "batch 1 time keys"] | None,
    ) -> Float[Tensor, "batch heads time dim"]:
        bias = self.decay(query, key).masked_fill(~self.seen(query, key, mask), -torch.inf)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=self.grouped)
        return mixed + shared(self.local_context(value, mask, query.shape[2]), query.shape[1])

    def scores(
        self, query: Float[Tensor, "batch heads time dim"], key: Float[Tensor, "batch kv_heads keys dim"]
    ) -> Float[Tensor, "batch heads time keys"]:
        return super().scores(query, key) + self.decay(query, key)

    def decay(
        self, query: Float[Tensor, "batch heads time dim"], key: Float[Tensor, "batch kv_heads keys dim"]
    ) -> Float[Tensor, "heads time keys"]:
        """log G of the last ``time`` of the keys, as queries."""
        place = torch.arange(key.shape[2], device=key.device)
        offset = place[-query.shape[2] :, None] - place
        decays = log_decays(query.shape[1], self.decay_start, self.decay_range, key.device)
        return (decays[:, None, None] * offset.abs()).to(query.dtype)

    def local_context(
        self,
        value: Float[Tensor, "batch kv_heads keys dim"],
        mask: Bool[Tensor, "batch 1 time keys"] | None,
        time: int,
    ) -> Float[Tensor, "batch kv_heads time dim"]:
        """Σ_t w_t ⊙ V_(i − t) over what the last query sees, for the last ``time`` places i."""
        if mask is not None:
            value = value * mask[:, :, -1, :, None]
        keys, reach = value.shape[2], len(self.local) - 1
        past = F.pad(value, (0, 0, reach, 0))
        context = torch.zeros_like(value[:, :, -time:])
        for t, weight in enumerate(self.local):
            step = past[:, :, reach - t : reach - t + keys][:, :, -time:]
            context = context + weight.view(-1, 1, self.head_dim) * step
        return context

    def gate(
        self, place: Place, y: Float[Tensor, "batch time features"], x: Float[Tensor, "batch time hidden"]
    ) -> Float[Tensor, "batch time features"]:
        if place != "attention" or self.gate_projection is None:
            return y
        return y * self.gate_projection(x).sigmoid()
