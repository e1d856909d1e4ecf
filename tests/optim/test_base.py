"""What all optimizers of the registry share: their options by name, and groups that a state is kept of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.optim import optimizers


@pytest.mark.parametrize("name", optimizers.names())
def test_a_misspelt_argument_is_no_option_of_the_group(name: str) -> None:
    with pytest.raises(TypeError, match="wieght_decay"):
        optimizers[name](params=[nn.Parameter(torch.zeros(2, 2))], lr=0.1, wieght_decay=0.1)


@pytest.mark.parametrize("name", sorted(set(optimizers.names()) - {"sgdp"}))
def test_all_that_have_moments_of_adam_check_them_alike(name: str) -> None:
    assert optimizers.validate(name, {"betas": [0.8, 0.9], "weight_decay": 0, "eps": 1e-6})["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(
    "name", ["exponentiated-gradient", "fira", "galore", "multi-normalization", "muon", "sinkgd"]
)
def test_options_of_the_other_parameters_reach_their_group(name: str) -> None:
    optimizer = optimizers.build(
        name, {"betas": (0.5, 0.6), "eps": 0.25, "weight_decay": 0.125}, params=[nn.Parameter(torch.ones(3))], lr=0.1
    )
    (group,) = optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.6), 0.25, 0.0)
    assert optimizer.defaults.keys() >= {"betas", "eps", "lr"}
