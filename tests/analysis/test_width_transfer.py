from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.analysis.width_transfer import drift, match, top_singular_values
from assay.errors import UserError
from assay.models import Decoder, ModelConfig


def network(width: int, up: list[float], down: list[float]) -> nn.ModuleDict:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, width), "norm": nn.LayerNorm(width)})
    for name, values in (("up", up), ("down", down)):
        model[name] = nn.Linear(width, width, bias=False)
        model[name].weight.data = torch.diag(torch.tensor(values))
    return model


def test_of_matrices_with_known_values() -> None:
    narrow = top_singular_values(network(2, [1.0, -3.0], [0.5, 0.25]))
    wide = top_singular_values(network(3, [6.0, 1.0, 2.0], [0.0, 0.125, 0.0]))
    assert narrow == pytest.approx({"up.weight": 3.0, "down.weight": 0.5})
    assert match(narrow, wide) == pytest.approx({"up.weight": 2.0, "down.weight": 0.25})
    assert drift(narrow, wide) == pytest.approx((math.log(2) + math.log(0.25)) / 2)
    assert drift(narrow, narrow) == 0


def test_a_decoder_has_its_hidden_matrices_compared() -> None:
    sizes = {"depth": 1, "head_dim": 8, "vocab_size": 11, "max_length": 8}
    found = top_singular_values(Decoder(ModelConfig(**sizes, hidden_size=16)))
    assert {name.split(".")[-2] for name in found} == {"query", "key", "value", "output", "up", "gate", "down"}


def test_other_networks_are_refused() -> None:
    with pytest.raises(UserError, match="no matrix of the same name"):
        match({"a": 1.0}, {"b": 1.0})
