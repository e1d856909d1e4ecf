from __future__ import annotations

import math

import pytest
import torch
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from assay.errors import UserError
from assay.nn.mlp import mlps
from assay.nn.mlp.gelu import GELU


def test_tanh_form_is_the_mlp_of_gpt2() -> None:
    torch.manual_seed(0)
    theirs = GPT2MLP(20, GPT2Config(n_embd=12, resid_pdrop=0.0)).double()
    ours = mlps.build("gelu", {"bias": True, "approximate": "tanh"}, hidden_size=12, intermediate_size=20)
    ours = ours.double()
    torch.nn.init.normal_(theirs.c_fc.bias)
    torch.nn.init.normal_(theirs.c_fc.weight)
    for mine, other in ((ours.up, theirs.c_fc), (ours.down, theirs.c_proj)):
        mine.load_state_dict({"weight": other.weight.T, "bias": other.bias})
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("value", [-3.0, -0.5, 0.0, 0.7, 4.0])
def test_exact_form_is_x_times_the_normal_distribution_function(value: float) -> None:
    mlp = GELU(1, 1).double()
    torch.nn.init.ones_(mlp.up.weight)
    torch.nn.init.ones_(mlp.down.weight)
    y = mlp(torch.tensor([value], dtype=torch.float64)).item()
    assert y == pytest.approx(value * 0.5 * (1 + math.erf(value / math.sqrt(2))), rel=1e-12, abs=1e-15)


def test_no_bias_unless_asked() -> None:
    assert [name for name, _ in GELU(2, 3).named_parameters()] == ["up.weight", "down.weight"]


def test_unknown_approximation() -> None:
    with pytest.raises(UserError, match=r"mlp 'gelu', option approximate='erf': .*'none' or 'tanh'"):
        mlps.build("gelu", {"approximate": "erf"}, hidden_size=2, intermediate_size=2)
