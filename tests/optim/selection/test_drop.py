"""Drop-Muon: below the drawn layer nothing moves and no gradient is made; with one layer it is Muon."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.optim import optimizers, parameter_groups, selections
from assay.optim.selection.drop import Drop

IDS = torch.randint(17, (3, 8), generator=torch.Generator().manual_seed(0))


def decoder(depth: int = 4) -> Decoder:
    torch.manual_seed(0)
    shape = {"depth": depth, "hidden_size": 32, "num_heads": 2, "vocab_size": 17, "max_length": 8}
    return Decoder(ModelConfig.parse(shape))


def made(model: nn.Module, seed: int = 0, **options: Any) -> tuple[Any, Drop]:
    optimizer = optimizers.build("muon", params=parameter_groups(model), lr=0.01)
    selection = selections.build("drop", options, model=model, optimizer=optimizer, seed=seed, calibration=None)
    assert isinstance(selection, Drop)
    return optimizer, selection


def backward(model: nn.Module) -> None:
    nn.functional.cross_entropy(model(IDS).flatten(0, 1), IDS.roll(1).flatten()).backward()


def step_at(selection: Drop, first: int) -> int:
    """A step whose first trained layer this is."""
    return next(step for step in range(1000) if selection.first(step) == first)


def test_a_network_of_one_layer_takes_muons_steps() -> None:
    chosen, whole = decoder(1), decoder(1)
    one, selection = made(chosen)
    other = optimizers.build("muon", params=parameter_groups(whole), lr=0.01)
    for step in range(4):
        selection(step)
        for model, optimizer in ((chosen, one), (whole, other)):
            backward(model)
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(chosen.parameters(), whole.parameters(), strict=True))


def test_below_the_drawn_layer_nothing_moves() -> None:
    """Neither weights nor moments nor counts of steps, however often the layer was trained before."""
    model = decoder()
    optimizer, selection = made(model)
    for step in range(12):
        selection(step)
        below = [p for layer in selection.layers[: selection.first(step)] for p in layer]
        above = [p for layer in selection.layers[selection.first(step) :] for p in layer]
        weights = [p.detach().clone() for p in below + above]
        states = [{name: value.clone() for name, value in optimizer.state[p].items()} for p in below]
        backward(model)
        assert [p.grad is None for p in below + above] == [True] * len(below) + [False] * len(above)
        optimizer.step()
        optimizer.zero_grad()
        same = [torch.equal(p, old) for p, old in zip(below + above, weights, strict=True)]
        assert same == [True] * len(below) + [False] * len(above)
        for p, old in zip(below, states, strict=True):
            assert optimizer.state[p].keys() == old.keys()
            assert all(torch.equal(optimizer.state[p][name], old[name]) for name in old)


def test_gradients_are_those_of_the_whole_backward_pass() -> None:
    chosen, whole = decoder(), decoder()
    _, selection = made(chosen)
    backward(whole)
    for first in range(4):
        selection(step_at(selection, first))
        chosen.zero_grad()
        backward(chosen)
        for a, b in zip(chosen.parameters(), whole.parameters(), strict=True):
            assert a.grad is None or torch.equal(a.grad, b.grad)


def test_the_backward_pass_ends_at_the_drawn_layer() -> None:
    """Its operations: of each trained block two products for one forward, of the blocks below none."""
    model = decoder()
    _, selection = made(model)
    with FlopCounterMode(display=False) as counter:
        model(IDS)
    forward = counter.get_total_flops()
    block = counter.get_flop_counts()["Decoder.layers.0"]
    spent = []
    for first in range(4):
        selection(step_at(selection, first))
        with FlopCounterMode(display=False) as counter:
            backward(model)
        spent.append(counter.get_total_flops() - forward)
        model.zero_grad()
    saved = np.diff(spent)
    assert (saved < 0).all()
    assert -saved[1] == -saved[2]
    assert -saved[1] >= 2 * sum(block.values())


def test_layers_are_trained_in_proportion_to_their_depth() -> None:
    _, selection = made(decoder())
    steps = 2000
    found = np.zeros(4)
    for step in range(steps):
        found[selection.first(step) :] += 1
    share = np.arange(1, 5) / 4
    assert (np.abs(found / steps - share) <= 4 * np.sqrt(share * (1 - share) / steps)).all()
    assert found[-1] == steps


def test_the_shift_goes_from_whole_steps_to_the_last_layers() -> None:
    """p_j ∝ exp(a ((1 − q)(b − 1 − j) + q j))."""
    _, selection = made(decoder(), distribution="epoch-shift", steps=100)
    for step, q in ((0, 0.0), (30, 0.3), (100, 1.0), (500, 1.0)):
        expected = np.exp([0.5 * ((1 - q) * (3 - j) + q * j) for j in range(4)])
        np.testing.assert_allclose(selection.weights(step), expected)
    assert np.ptp(selection.weights(50)) == pytest.approx(0)


def test_draws_follow_from_seed_and_step_alone() -> None:
    (_, one), (_, two), (_, other) = (made(decoder(), seed=seed) for seed in (3, 3, 4))
    one(7)
    assert [one.first(s) for s in range(60)] == [two.first(s) for s in range(60)]
    assert [one.first(s) for s in range(60)] != [other.first(s) for s in range(60)]


def test_on_a_quadratic_each_trained_layer_lands_in_one_step() -> None:
    """f = Σ L_i / 2 ‖X_i − A_i‖² and the Euclidean step 1 / L_i: where Muon's norm is replaced, the scheme stays."""
    smoothness = (1.0, 4.0, 16.0)
    network = nn.Sequential(*[nn.Linear(3, 3, bias=False) for _ in smoothness])
    weights = [layer.weight for layer in network]
    goals = [torch.randn(3, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    optimizer = torch.optim.SGD(
        [{"params": [w], "lr": 1 / c} for w, c in zip(weights, smoothness, strict=True)], lr=1
    )
    selection = Drop(network, seed=0)
    landed = [False] * 3
    for step in range(12):
        selection(step)
        terms = [c / 2 * (w - a).square().sum() for c, w, a in zip(smoothness, weights, goals, strict=True)]
        sum(terms, torch.zeros(())).backward()
        optimizer.step()
        optimizer.zero_grad()
        landed = [before or index >= selection.first(step) for index, before in enumerate(landed)]
        assert [torch.allclose(w, a, atol=1e-6) for w, a in zip(weights, goals, strict=True)] == landed
    assert all(landed)


def test_a_convolutional_network() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3)
    )
    _, selection = made(network)
    selection(step_at(selection, 1))
    network(torch.ones(2, 1, 8, 8)).sum().backward()
    assert [p.grad is None for p in network.parameters()] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"steps": 0}, "selection 'drop', option steps=0: input should be greater than 0"),
        (
            {"distribution": "geometric"},
            "selection 'drop', option distribution='geometric': input should be 'uniform' or 'epoch-shift'",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        made(decoder(), **options)
    assert str(caught.value) == line
