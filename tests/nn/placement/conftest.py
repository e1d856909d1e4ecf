"""Small networks in float64, and branches that are easy to reason about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.models import Decoder, ModelConfig
from assay.models.decoder import Sublayer
from assay.nn.norm import norms
from assay.nn.placement import Placement

SIZES = {"hidden_size": 8, "num_heads": 2, "vocab_size": 11, "max_length": 6, "position": "none"}


class Branch(nn.Module):
    """A function as a branch; keeps the input that it last saw."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.function(x)


@pytest.fixture
def ids() -> Tensor:
    return torch.tensor([[1, 4, 2, 10, 0], [3, 3, 7, 5, 9]])


@pytest.fixture
def decoder() -> Callable[..., Decoder]:
    """``decoder(placement, depth=3, eps=1e-6, **fields)``: every parameter random, gains around 1."""

    def make(placement: Any, depth: int = 3, eps: float = 1e-6, seed: int = 0, **fields: Any) -> Decoder:
        norm = {"name": "rms-norm", "eps": eps}
        data = {**SIZES, "norm": norm, "depth": depth, "placement": placement, **fields}
        model = Decoder(ModelConfig.parse(data)).double()
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.5 * noise)
        return model

    return make


@pytest.fixture
def sublayer() -> Callable[..., Sublayer]:
    """``sublayer(placement, function, hidden_size)``: a function between norms of gain 1 and eps 0."""

    def make(placement: Placement, function: Callable[[Tensor], Tensor], hidden_size: int) -> Sublayer:
        sizes = {"hidden_size": hidden_size, "num_heads": 1}
        config = ModelConfig.parse({**sizes, "norm": {"name": "rms-norm", "eps": 0.0}})
        return Sublayer(Branch(function), placement, config, 0).double()

    return make


@pytest.fixture
def reset_gains() -> Callable[[nn.Module], None]:
    """Sets the gain of every norm to 1."""

    def reset(model: nn.Module) -> None:
        for module in model.modules():
            if type(module) is norms["rms-norm"]:
                nn.init.ones_(module.weight)

    return reset


@pytest.fixture
def copy_in_order() -> Callable[[nn.Module, nn.Module], None]:
    """Copies parameters by their order: for networks of one shape whose norms stand at different places."""

    def copy(source: nn.Module, target: nn.Module) -> None:
        for one, other in zip(source.parameters(), target.parameters(), strict=True):
            assert one.shape == other.shape
            other.data.copy_(one.data)

    return copy


@pytest.fixture
def streams() -> Callable[[Decoder, Tensor], list[Tensor]]:
    """The residual stream before the first sublayer and after each one."""

    def collect(model: Decoder, ids: Tensor) -> list[Tensor]:
        seen: list[Tensor] = []

        def keep(module: nn.Module, arguments: tuple[Any, ...], state: Tensor) -> None:
            if not seen:
                seen.append(arguments[1])
            seen.append(state)

        hooks = [half.register_forward_hook(keep) for layer in model.layers for half in (layer.mixer, layer.mlp)]
        model(ids)
        for hook in hooks:
            hook.remove()
        return seen

    return collect


@pytest.fixture
def torch_layer() -> Callable[[nn.Module, bool], nn.TransformerEncoderLayer]:
    """torch's own layer with the weights of one of ours (layer-norm, gelu, biases everywhere)."""

    def build(layer: Any, norm_first: bool) -> nn.TransformerEncoderLayer:
        attention, mlp = layer.mixer.branch, layer.mlp.branch
        theirs = nn.TransformerEncoderLayer(
            8, 2, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
        ).double()
        place = "input_norm" if norm_first else "stream_norm"
        qkv = (attention.query, attention.key, attention.value)
        with torch.no_grad():
            theirs.self_attn.in_proj_weight.copy_(torch.cat([linear.weight for linear in qkv]))
            theirs.self_attn.in_proj_bias.copy_(torch.cat([linear.bias for linear in qkv]))
        for other, mine in (
            (theirs.self_attn.out_proj, attention.output),
            (theirs.linear1, mlp.up),
            (theirs.linear2, mlp.down),
            (theirs.norm1, getattr(layer.mixer, place)),
            (theirs.norm2, getattr(layer.mlp, place)),
        ):
            other.load_state_dict(mine.state_dict())
        return theirs

    return build


@pytest.fixture
def torch_like() -> dict[str, Any]:
    """Fields that make our layer of the kind of torch's."""
    return {
        "norm": "layer-norm",
        "mixer": {"name": "softmax", "qkv_bias": True, "output_bias": True},
        "mlp": {"name": "gelu", "bias": True},
        "intermediate_size": 24,
    }
