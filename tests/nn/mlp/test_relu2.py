from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import NemotronConfig
from transformers.models.nemotron.modeling_nemotron import NemotronMLP

from assay.nn.mlp import mlps
from assay.nn.mlp.relu2 import ReLU2


@pytest.mark.parametrize("bias", [False, True])
def test_is_the_mlp_of_nemotron(bias: bool) -> None:
    torch.manual_seed(0)
    config = NemotronConfig(hidden_size=12, intermediate_size=20, mlp_bias=bias, hidden_act="relu2")
    theirs = NemotronMLP(config).double()
    ours = mlps.build("relu2", {"bias": bias}, hidden_size=12, intermediate_size=20).double()
    ours.up.load_state_dict(theirs.up_proj.state_dict())
    ours.down.load_state_dict(theirs.down_proj.state_dict())
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-14)


def test_worked_numbers() -> None:
    mlp = ReLU2(1, 2)
    mlp.up.weight.data.copy_(torch.tensor([[3.0], [-1.0]]))
    mlp.down.weight.data.copy_(torch.tensor([[0.5, 10.0]]))
    y = mlp(torch.tensor([[1.0], [2.0], [-2.0]]))
    assert y.flatten().tolist() == [4.5, 18.0, 40.0]


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**31))
def test_homogeneous_of_degree_two(scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    mlp, x = ReLU2(3, 8).double(), torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(mlp(scale * x), scale**2 * mlp(x))
