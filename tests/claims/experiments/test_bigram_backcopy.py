from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.bigram_backcopy import losses, losses_of_rule, train
from assay.data.synthetic.bigram_backcopy import BigramBackcopy

TINY = {"steps": 2, "hidden_size": 8, "length": 12, "batch_size": 4}


@pytest.mark.parametrize("name", ["backcopy-sink", "backcopy-residual-peak"])
def test_follows_from_the_seed(name: str) -> None:
    first, again, other = (experiments.build(name, TINY, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[key] != other[key] for key in first)
    assert all(math.isfinite(value) for value in first.values())


def test_who_knows_the_rule_loses_nothing_on_copies_and_the_entropy_elsewhere() -> None:
    task = BigramBackcopy.random(0, characters=9)
    ids = task.batch(np.random.default_rng(0), 3000, 30)
    loss, trigger = losses_of_rule(task, ids), task.is_trigger(ids)[:, :-1]
    assert not loss[trigger].any()
    entropy = -(task.bigram * np.log(task.bigram.clip(1e-300))).sum(1)
    after = ids[:, 1:-1][~trigger[:, 1:]]
    expected = torch.from_numpy(entropy)[after].mean().item()
    assert loss[:, 1:][~trigger[:, 1:]].mean().item() == pytest.approx(expected, rel=0.02)


def test_training_lowers_the_loss_and_untrained_models_guess() -> None:
    task = BigramBackcopy.random(0, characters=9)
    ids = task.batch(np.random.default_rng(9), 64, 16)
    sizes = {"depth": 1, "mixer": "softmax", "hidden_size": 16, "length": 16, "batch_size": 16}
    for optimizer, lr in (("adamw", 1e-2), ("sgd", 0.3)):
        fresh, trained = (
            losses(train(task, 0, optimizer=optimizer, lr=lr, steps=steps, **sizes), ids).mean()  # type: ignore[arg-type]
            for steps in (0, 60)
        )
        assert fresh > math.log(9) - 0.3
        assert trained < fresh - 0.5
