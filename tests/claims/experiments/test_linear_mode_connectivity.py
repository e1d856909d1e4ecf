from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.analysis.linear_mode_connectivity import Layer, Line
from assay.claims.experiments import experiments
from assay.claims.experiments.linear_mode_connectivity import both, perceptron, trained

pytest.importorskip("sklearn")


def test_a_layer_is_ranked_by_the_mean_of_its_two_barriers() -> None:
    """By hand: 3 over the chord of 1 and 2 is 1.5, and 5 over that of 2 and 2 is 3."""
    layer = Layer("0", Line((0, 0.5, 1), (1, 3, 2)), Line((0, 0.5, 1), (2, 5, 2)), predicted=0.25)
    assert both(layer) == (0.25, 2.25)


def test_training_starts_from_the_network_and_leaves_it() -> None:
    data = torch.randn(40, 64).double(), torch.arange(40) % 10
    torch.manual_seed(0)
    network = perceptron(8, 3)
    assert [module.weight.shape for module in network if isinstance(module, nn.Linear)] == [(8, 64), (8, 8), (10, 8)]
    before = nn.utils.parameters_to_vector(network.parameters()).clone()
    same, one, other = (trained(network, data, steps=n, lr=0.1, order=order) for n, order in ((0, 0), (3, 0), (3, 1)))
    ends = [nn.utils.parameters_to_vector(module.parameters()) for module in (network, same, one, other)]
    torch.testing.assert_close(ends[0], before, rtol=0, atol=0)
    torch.testing.assert_close(ends[1], before, rtol=0, atol=0)
    assert not torch.equal(ends[2], ends[3])


def test_numbers_of_a_short_run() -> None:
    options = {"forks": (0, 6), "after": (3, 6), "depth": 3, "width": 8}
    found = experiments.build("fork-barriers", options, seed=0)
    assert found == experiments.build("fork-barriers", options, seed=0)
    assert set(found) == {"0.barrier", "0.angle", "6.barrier", "6.angle", "rank.barriers", "rank.layers"}
    assert 0 < found["0.angle"] < 90
    assert -1 <= found["rank.layers"] <= 1
