"""What layers read, of decoders whose branches write known vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from assay.claims.properties import properties
from assay.errors import UserError
from assay.models import Decoder, ModelConfig

SIZES = {"hidden_size": 16, "num_heads": 2, "vocab_size": 31, "max_length": 8}
IDS = torch.arange(8)[None]


class Constant(nn.Module):
    """A branch that writes one number, whatever it reads."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, *arguments: object) -> Tensor:
        return torch.full_like(x, self.value)


def measure(depth: int, residual: object, written: tuple[float, ...] = ()) -> dict[str, float]:
    decoder = Decoder(ModelConfig.parse({**SIZES, "depth": depth, "residual": residual})).eval()
    nn.init.zeros_(decoder.embedding.weight)
    for layer, value in zip(decoder.layers, written or [1.0] * depth, strict=True):
        layer.mixer.branch = layer.mlp.branch = Constant(value)
    found = properties.build("read-growth", model=decoder, ids=IDS, config=None)
    assert "read" not in vars(decoder.residual)
    return found


def test_a_plain_stream_grows_with_the_depth() -> None:
    """Layer l reads the 2 (l − 1) vectors written before."""
    assert measure(5, "plain") == pytest.approx({"growth": 4.0, "peak": 4.0})


def test_a_mean_of_equal_vectors_does_not_grow() -> None:
    """A mixture over the empty embedding and n ones is n / (n + 1): 8/9 against 2/3."""
    found = measure(5, {"name": "attention-residuals", "blocks": "full"})
    assert found == pytest.approx({"growth": 4 / 3, "peak": 4 / 3})


def test_the_peak_is_the_largest_on_the_way() -> None:
    """Layers 2, 3 and 4 read 2, 6 and 2."""
    assert measure(4, "plain", (1.0, 2.0, -2.0, 5.0)) == pytest.approx({"growth": 1.0, "peak": 3.0})
    assert measure(2, "plain") == pytest.approx({"growth": 1.0, "peak": 1.0})


def test_one_layer_has_nothing_to_compare() -> None:
    with pytest.raises(UserError, match="two layers or more"):
        measure(1, "plain")
