from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.claims.experiments import experiments
from assay.claims.experiments.layer_norm_recurrent import RecurrentClassifier

pytest.importorskip("sklearn")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_without_norm_it_is_torchs_recurrent_network() -> None:
    model, x = RecurrentClassifier(3, 5, normed=False).double(), draw(4, 7, 3)
    theirs = nn.RNN(3, 5, batch_first=True, dtype=torch.float64)
    theirs.weight_ih_l0.data.copy_(model.input.weight)
    theirs.bias_ih_l0.data.copy_(model.input.bias)
    theirs.weight_hh_l0.data.copy_(model.recurrent.weight)
    theirs.bias_hh_l0.data.zero_()
    torch.testing.assert_close(model(x), model.head(theirs(x)[0][:, -1]), rtol=1e-10, atol=1e-12)


def test_with_norm_the_summed_inputs_of_each_step_are_normed() -> None:
    model, x = RecurrentClassifier(3, 5, normed=True).double(), draw(4, 7, 3)
    model.norm.weight.data.copy_(draw(5, seed=1))
    model.norm.bias.data.copy_(draw(5, seed=2))
    state = torch.zeros(4, 5, dtype=torch.float64)
    for step in range(7):
        summed = state @ model.recurrent.weight.T + x[:, step] @ model.input.weight.T
        state = torch.tanh(F.layer_norm(summed, (5,), model.norm.weight, model.norm.bias, 1e-5))
    torch.testing.assert_close(model(x), model.head(state), rtol=1e-10, atol=1e-12)


def test_the_size_of_both_matrices_does_not_matter_with_norm() -> None:
    model, x = RecurrentClassifier(3, 5, normed=True).double(), draw(4, 7, 3)
    model.norm.eps = 0.0
    y = model(x)
    for linear in (model.input, model.recurrent):
        linear.weight.data *= 50
    torch.testing.assert_close(model(x), y, rtol=1e-9, atol=1e-11)


def test_counts_steps_between_one_and_the_budget() -> None:
    quick = {"batch_size": 8, "length": 4, "hidden_size": 8, "lrs": (1e-2,)}
    run = lambda **options: experiments.build("layer-norm-recurrent", {**quick, **options}, seed=0)  # noqa: E731
    assert run(target=10.0, steps=3) == {"plain": 1, "normed": 1}
    assert run(target=0.0, steps=3) == {"plain": 3, "normed": 3}
    found = run(target=1.5, steps=200)
    assert found == run(target=1.5, steps=200)
    assert min(found.values()) > 1
    assert max(found.values()) < 200
