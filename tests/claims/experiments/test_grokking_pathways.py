from __future__ import annotations

import numpy as np
import pytest
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.grokking_pathways import Experts, _correlation

TINY = {"modulus": 7, "steps": 6, "every": 2, "hidden_size": 8, "width": 4, "experts": 4, "samples": 10}


def test_a_seed_decides_all_that_is_measured():
    found, again = (experiments.build("grokking-pathways", TINY, seed=1) for _ in range(2))
    np.testing.assert_equal(found, again)
    assert found["true.memorized"] == 6, "nothing is known by heart after six steps"
    assert found["true.fall"] == 0


def test_a_layer_adds_its_chosen_experts():
    torch.manual_seed(0)
    layer = Experts(6, experts=4, width=5, chosen=2)
    x = torch.randn(3, 6)
    z = layer.norm(x)
    weights = layer.router(z).softmax(-1)
    expected = x.clone()
    for row in range(3):
        for k in weights[row].topk(2).indices:
            expected[row] += weights[row, k] * ((z[row] @ layer.experts_up[k]).relu() @ layer.experts_down[k])
    torch.testing.assert_close(layer(x), expected)


def test_correlations_by_hand():
    assert _correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0, -2.0])) == pytest.approx(-1)
    assert np.isnan(_correlation(np.array([1.0, 2.0]), np.array([1.0, 2.0])))
    assert np.isnan(_correlation(np.array([1.0, 2.0, np.nan]), np.array([1.0, 2.0, 3.0])))
