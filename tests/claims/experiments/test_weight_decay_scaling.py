from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.claims.experiments import experiments
from assay.claims.experiments.weight_decay_scaling import (
    FACTORS,
    TOKENS,
    Language,
    Network,
    Setting,
    logits,
    optimum,
    train,
)
from assay.optim.transfer.none import NoTransfer


def test_networks_side_by_side_are_each_by_itself() -> None:
    torch.manual_seed(0)
    networks = [Network(8), Network(8)]
    for network in networks:
        nn.init.normal_(network.norm.weight)
    pairs = torch.randint(TOKENS, (5, 2))
    for network, found in zip(networks, logits(networks, pairs), strict=True):
        x = network.embedding(pairs[:, 0]) + network.embedding(pairs[:, 1] + TOKENS)
        x = x + network.down(F.relu(network.up(network.norm(x))))
        torch.testing.assert_close(found, network.head(network.final_norm(x)))


def test_each_network_trains_as_if_alone() -> None:
    settings = [Setting(NoTransfer(8), 0.01, 1.0), Setting(NoTransfer(8), 0.05, 0.1)]
    options = {"seed": 3, "steps": 10, "batch_size": 16, "init_std": 0.1, "examples": 50}
    together, _ = train(8, settings, **options)
    alone = [train(8, [setting], **options)[0][0] for setting in settings]
    assert together == pytest.approx(alone, rel=1e-4)
    assert together[0] != together[1]


def test_the_excess_of_a_network_that_knows_nothing() -> None:
    language = Language(0, 4000)
    assert language.pairs.unique().tolist() == list(range(TOKENS))
    network = Network(8)
    nn.init.zeros_(network.head.weight)
    uniform = (language.table * (language.table * TOKENS).log()).sum(-1).mean().item()
    assert language.excess([network])[0] == pytest.approx(uniform, rel=1e-4)


@pytest.mark.parametrize("place", [-1.5, 0.0, 0.7])
def test_the_optimum_of_a_parabola_is_found(place: float) -> None:
    assert optimum(np.exp(0.1 * (np.log2(FACTORS) - place) ** 2).tolist()) == pytest.approx(place)


def test_the_optimum_at_an_end_or_beside_a_divergence() -> None:
    assert optimum([1.0, 2.0, 3.0, 4.0, float("nan")]) == -4
    assert -2 <= optimum([5.0, 1.0, 2.0, float("inf"), float("nan")]) < 0


def test_one_step_is_reproducible() -> None:
    options = {"widths": (8, 16), "steps": 2, "batch_size": 4}
    found, again = (experiments.build("weight-decay-scaling", options, seed=0) for _ in range(2))
    assert found == again
    assert {"root.lr_shift", "constant.decay_shift", "root.drift", "exponent"} <= found.keys()
