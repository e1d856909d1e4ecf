"""Long short-attention: most heads see the last few keys, a few see all.

    short head: query i sees the keys j with 0 ≤ i − j < window
    long head:  query i sees the keys j ≤ i

All else is multi-head attention, with its weights and shapes. Dense short-range dependencies then need no large
logits of a head that has to single them out among all keys, and most heads cost T · window in place of T². Heads are
short or long with the keys and values that they share, so ``num_long`` counts key and value heads.

Hajra, 2025, arXiv:2505.15548.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from assay.errors import UserError
from assay.nn.attention.softmax import SoftmaxAttention
from assay.nn.mixer import mixers


@mixers.register("ls-attention")
class LSAttention(SoftmaxAttention):
    """The long heads are the last. Raises ``UserError`` if there are fewer key and value heads than ``num_long``."""

    def __init__(
        self,
        *context: Any,
        window: Annotated[int, Field(gt=0)] = 100,
        num_long: Annotated[int, Field(ge=0)] = 1,
        **options: Any,
    ) -> None:
        super().__init__(*context, **options)
        if num_long > self.num_kv_heads:
            raise UserError(
                f"ls-attention: num_long={num_long} is more than the {self.num_kv_heads} key and value heads"
            )
        self.window = window
        self.num_short = self.num_kv_heads - num_long

    def mix(
        self,
        x: Float[Tensor, "batch time hidden"],
        query: Float[Tensor, "batch heads time dim"],
        key: Float[Tensor, "batch kv_heads keys dim"],
        value: Float[Tensor, "batch kv_heads keys dim"],
        mask: Bool[Tensor, "batch 1 time keys"] | None,
    ) -> Float[Tensor, "batch heads time dim"]:
        short = self.short_queries(query, key)
        mixed = []
        if self.num_short:
            heads = slice(self.num_short)
            mixed.append(self.mix_short(query[:, :short], key[:, heads], value[:, heads], mask))
        if self.num_short < key.shape[1]:
            heads = slice(self.num_short, None)
            mixed.append(super().mix(x, query[:, short:], key[:, heads], value[:, heads], mask))
        return torch.cat(mixed, dim=1)

    def mix_short(
        self,
        query: Float[Tensor, "batch heads time dim"],
        key: Float[Tensor, "batch kv_heads keys dim"],
        value: Float[Tensor, "batch kv_heads keys dim"],
        mask: Bool[Tensor, "batch 1 time keys"] | None,
    ) -> Float[Tensor, "batch heads time dim"]:
        """In blocks for a whole sequence, on the last keys alone for a single query, else under a mask."""
        time = query.shape[2]
        if mask is None and time > 2 * self.window:
            return self.mix_blocks(query, key[:, :, :time], value[:, :, :time])
        seen = super().seen(query, key, mask)
        if time == 1 and key.shape[2] > self.window:
            place = own(seen) - torch.arange(self.window - 1, -1, -1, device=key.device)
            seen = seen.gather(-1, place.clamp(min=0)) & (place >= 0)
            taken = place.clamp(min=0).mT.expand(*key.shape[:2], -1, key.shape[3])
            key, value = key.gather(2, taken), value.gather(2, taken)
        else:
            seen = self.recent(seen)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=self.grouped)

    def mix_blocks(
        self,
        query: Float[Tensor, "batch heads time dim"],
        key: Float[Tensor, "batch kv_heads time dim"],
        value: Float[Tensor, "batch kv_heads time dim"],
    ) -> Float[Tensor, "batch heads time dim"]:
        """A whole sequence, in blocks of ``window`` queries, each with the keys of its own and the previous block."""
        batch, time = query.shape[0], query.shape[2]
        window, count = self.window, -(-time // self.window)
        padding = count * window - time

        def blocks(x: Tensor, earlier: int) -> Tensor:
            cut = F.pad(x, (0, 0, earlier, padding)).unfold(2, window + earlier, window)
            return cut.permute(0, 2, 1, 4, 3).flatten(0, 1)

        place = torch.arange(window, device=key.device)
        back = place[:, None] + window - torch.arange(2 * window, device=key.device)
        band = (back >= 0) & (back < window)
        first = band & (torch.arange(2 * window, device=key.device) >= window)
        seen = torch.cat((first[None], band.expand(count - 1, -1, -1))).repeat(batch, 1, 1)[:, None]
        mixed = F.scaled_dot_product_attention(
            blocks(query, 0), blocks(key, window), blocks(value, window), attn_mask=seen, enable_gqa=self.grouped
        )
        return mixed.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)[:, :, :time]

    def seen(
        self,
        query: Float[Tensor, "batch heads time dim"],
        key: Float[Tensor, "batch kv_heads keys dim"],
        mask: Bool[Tensor, "batch 1 time keys"] | None,
    ) -> Bool[Tensor, "#batch heads time keys"]:
        seen, heads = super().seen(query, key, mask), torch.arange(query.shape[1], device=key.device)
        short = heads[:, None, None] < self.short_queries(query, key)
        return torch.where(short, self.recent(seen), seen)

    def short_queries(
        self, query: Float[Tensor, "batch heads time dim"], key: Float[Tensor, "batch kv_heads keys dim"]
    ) -> int:
        """How many query heads are short."""
        return self.num_short * query.shape[1] // key.shape[1]

    def recent(self, seen: Bool[Tensor, "#batch 1 time keys"]) -> Bool[Tensor, "#batch 1 time keys"]:
        """Of the keys that a query sees, those less than ``window`` before its own."""
        return seen & (torch.arange(seen.shape[-1], device=seen.device) > own(seen) - self.window)


def own(seen: Bool[Tensor, "#batch 1 time keys"]) -> Tensor:
    """The place of each query's own key, shape (batch, 1, time, 1): the last that it sees."""
    return (seen * torch.arange(seen.shape[-1], device=seen.device)).amax(-1, keepdim=True)
