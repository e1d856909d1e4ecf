from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from assay.nn.mlp import mlps
from assay.nn.mlp.swiglu import SwiGLU


@pytest.mark.parametrize("bias", [False, True])
def test_is_the_mlp_of_llama(bias: bool) -> None:
    torch.manual_seed(0)
    theirs = LlamaMLP(
        LlamaConfig(hidden_size=12, num_attention_heads=2, intermediate_size=20, mlp_bias=bias)
    ).double()
    ours = mlps.build("swiglu", {"bias": bias}, hidden_size=12, intermediate_size=20).double()
    for mine, other in ((ours.gate, theirs.gate_proj), (ours.up, theirs.up_proj), (ours.down, theirs.down_proj)):
        mine.load_state_dict(other.state_dict())
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-14)


def test_worked_number() -> None:
    mlp = SwiGLU(1, 1)
    for linear, value in ((mlp.gate, 2.0), (mlp.up, 3.0), (mlp.down, 0.5)):
        torch.nn.init.constant_(linear.weight, value)
    silu = 2.0 / (1 + math.exp(-2.0))
    torch.testing.assert_close(mlp(torch.ones(1)), torch.tensor([silu * 3 * 0.5]))


def test_linear_in_the_up_projection() -> None:
    torch.manual_seed(0)
    mlp, x = SwiGLU(4, 7).double(), torch.randn(3, 4, dtype=torch.float64)
    y = mlp(x)
    mlp.up.weight.data *= -3
    torch.testing.assert_close(mlp(x), -3 * y)


def test_usual_expansion_costs_what_an_ungated_mlp_costs() -> None:
    hidden = 24
    gated = SwiGLU(hidden, round(SwiGLU.expansion * hidden))
    assert sum(p.numel() for p in gated.parameters()) == 2 * 4 * hidden * hidden
