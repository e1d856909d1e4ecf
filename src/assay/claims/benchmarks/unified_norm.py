"""Inference of a decoder with LayerNorm, and of one whose Unified Norms are folded into the maps behind them.

Yang, Zhang, Lan, Yang, Li, Tan, Xiao, Pu, 2022, arXiv:2208.01313.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from assay.claims.benchmarks import benchmarks
from assay.models import Decoder, ModelConfig
from assay.models.decoder import Sublayer
from assay.models.initialization import initialize

Size = Annotated[int, Field(gt=0)]


@benchmarks.register("unified-norm")
def unified_norm(
    *, depth: Size = 4, hidden_size: Size = 256, batch_size: Size = 8, sequence_length: Size = 1
) -> dict[str, Callable[[], Tensor]]:
    """``layer-norm``, ``unified-norm`` (evaluated as it was trained) and ``fused``: logits of the same tokens."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    ids = torch.arange(batch_size * sequence_length, device=device).view(batch_size, sequence_length) % 256

    def contestant(norm: str, *, folded: bool = False) -> Callable[[], Tensor]:
        sizes = {"depth": depth, "hidden_size": hidden_size, "vocab_size": 256, "max_length": sequence_length}
        model = Decoder(ModelConfig.parse({**sizes, "norm": norm}))
        initialize(model, 0, model.config.init_std)
        if folded:
            fold(model)
        model.to(device).eval()
        return torch.inference_mode()(lambda: model(ids))

    return {
        "layer-norm": contestant("layer-norm"),
        "unified-norm": contestant("unified-norm"),
        "fused": contestant("unified-norm", folded=True),
    }


def fold(model: Decoder) -> None:
    """Take out the Unified Norms of a Pre-LN decoder, in place; its logits in evaluation stay what they are."""
    for sublayer in model.modules():
        if isinstance(sublayer, Sublayer):
            _absorb(sublayer.input_norm, sublayer.branch, sublayer.branch.input_maps)
            sublayer.input_norm = None
    _absorb(model.final_norm, model.head, ("projection",))
    model.final_norm = None


def _absorb(norm: Any, reader: nn.Module, names: Any) -> None:
    norm.fold_into(reader.get_submodule(name) for name in names)
