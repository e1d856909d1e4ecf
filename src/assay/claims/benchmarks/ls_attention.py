"""Long short-attention beside multi-head attention, as decoders that take one more token after a long text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from assay.claims.benchmarks import benchmarks
from assay.models import Decoder, ModelConfig


@benchmarks.register("ls-attention")
def ls_attention(
    *,
    depth: Annotated[int, Field(gt=0)] = 4,
    hidden_size: Annotated[int, Field(gt=0)] = 768,
    num_heads: Annotated[int, Field(gt=0)] = 12,
    window: Annotated[int, Field(gt=0)] = 100,
    context: Annotated[int, Field(gt=0)] = 8192,
    batch_size: Annotated[int, Field(gt=0)] = 1,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> dict[str, Callable[[], Tensor]]:
    """``softmax`` and ``ls-attention``: a decoder's step for one token of each of ``batch_size`` texts of ``context``
    tokens, whose keys and values lie ready, the head left out."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    dtype = getattr(torch, precision)
    contestants: dict[str, Callable[[], Tensor]] = {}
    mixers: dict[str, dict[str, int]] = {"softmax": {}, "ls-attention": {"window": window}}
    for name, mixer in mixers.items():
        torch.manual_seed(0)
        sizes = {"depth": depth, "hidden_size": hidden_size, "num_heads": num_heads}
        config = ModelConfig.parse(
            {**sizes, "mixer": {"name": name, **mixer}, "vocab_size": 256, "max_length": context}
        )
        model = Decoder(config).to(device, dtype).eval().requires_grad_(False)
        cache = Ready(depth, (batch_size, num_heads, context, config.head_dim), device, dtype)
        contestants[name] = partial(
            model.hidden,
            torch.zeros(batch_size, 1, dtype=torch.long, device=device),
            position_ids=torch.full((1, 1), context - 1, device=device),
            mask=torch.ones(batch_size, 1, 1, context, dtype=torch.bool, device=device),
            cache=cache,
        )
    return contestants


class Ready:
    """A cache of a fixed length that is full but for the last token."""

    def __init__(
        self, depth: int, shape: tuple[int, int, int, int], device: torch.device | None, dtype: torch.dtype
    ) -> None:
        self.layers = [torch.randn(2, *shape, device=device, dtype=dtype) for _ in range(depth)]

    def update(
        self,
        key_states: Float[Tensor, "batch heads 1 dim"],
        value_states: Float[Tensor, "batch heads 1 dim"],
        layer_idx: int,
    ) -> tuple[Float[Tensor, "batch heads all dim"], Float[Tensor, "batch heads all dim"]]:
        key, value = self.layers[layer_idx]
        key[:, :, -1:], value[:, :, -1:] = key_states, value_states
        return key, value
