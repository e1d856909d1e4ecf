from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.analysis.cnn_stop_learning import StopLearning, stop_epoch
from assay.errors import UserError


def settling(time: float, scale: float = 1.0) -> list[list[float]]:
    return [[scale * f * 0.5 * (1 - math.exp(-e / time)) for f in (1, 2)] for e in range(200)]


def test_six_epochs_are_the_fewest() -> None:
    assert stop_epoch([[0.5, 1.0]] * 20) == 5
    assert stop_epoch([[0.5, 1.0]] * 5) is None


def test_five_equal_rows_count_from_the_last_change() -> None:
    assert stop_epoch([[0.5]] * 4 + [[0.51]] + [[0.5]] * 9) == 9
    assert stop_epoch([[0.5, 0.1]] * 4 + [[0.5, 0.11]] + [[0.5, 0.11]] * 9) == 8


@pytest.mark.parametrize(("decimals", "expected"), [(1, (10, 16, 23)), (2, (15, 26, 41)), (3, (20, 35, 52))])
def test_when_exponentials_have_settled(decimals: int, expected: tuple[int, ...]) -> None:
    assert tuple(stop_epoch(settling(time), decimals=decimals) for time in (2, 4, 8)) == expected


def test_it_depends_on_the_scale_of_activations() -> None:
    assert [stop_epoch(settling(time, scale=10)) for time in (2, 4, 8)] == [20, 35, 52]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2)
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64, 3))


def train(model: nn.Module, epochs: int, lr: float, rule: StopLearning | None = None, seed: int = 0) -> int:
    """Epochs trained: two batches of eight images, the same in every epoch."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(16, 1, 6, 6, generator=generator), torch.arange(16) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    torch.manual_seed(seed)
    for epoch in range(epochs):
        for x, y in zip(images.split(8), labels.split(8), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        if rule is not None and rule.end_epoch():
            return epoch + 1
    return epochs


def test_the_spread_is_the_unbiased_one_and_is_averaged_over_iterations() -> None:
    identity = nn.Identity()
    with StopLearning([identity]) as rule:
        identity(torch.tensor([0.0, 0, 2, 2]))
        identity(torch.tensor([[7.0, 7], [9, 9]]))
        identity.eval()(torch.tensor([0.0, 100]))
        identity.train()(torch.zeros(4))
        assert not rule.end_epoch()
    assert rule.means == [[pytest.approx(2 * 1.1547 / 3, abs=1e-4)]]
    identity(torch.ones(3))
    with pytest.raises(UserError, match="Identity was not called in training mode"):
        rule.end_epoch()


def test_watching_changes_nothing() -> None:
    plain, watched = network(), network()
    with StopLearning([watched[0], watched[2]]) as rule:
        train(watched, 4, 0.1, rule)
    after = torch.get_rng_state()
    train(plain, 4, 0.1)
    assert torch.equal(after, torch.get_rng_state())
    for one, other in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_network_that_does_not_learn_is_stopped_at_once() -> None:
    """So the rule sees that statistics are frozen, not that nothing is left to learn."""
    model = network()
    with StopLearning([model[0]]) as rule:
        assert train(model, 20, 0.0, rule) == 6


def test_a_training_goes_on_from_its_rows() -> None:
    whole, parts = nn.Identity(), nn.Identity()
    values = [torch.tensor([0.0, value]) for value in (1.0, 1.3, 1.4, 1.4, 1.4, 1.4, 1.4, 1.4)]
    with StopLearning([whole]) as rule:
        found = []
        for value in values:
            whole(value)
            found.append(rule.end_epoch())
    with StopLearning([parts]) as first:
        for value in values[:4]:
            parts(value)
            first.end_epoch()
    with StopLearning([parts]) as second:
        second.means = first.means
        again = []
        for value in values[4:]:
            parts(value)
            again.append(second.end_epoch())
    assert again == found[4:] == [False, False, True, True]
    assert second.means == rule.means


def test_bad_input_is_one_line() -> None:
    with pytest.raises(UserError, match="epochs=1, decimals=2; they are at least 2 and 0"):
        StopLearning([nn.Identity()], epochs=1)
    with pytest.raises(UserError, match="no layer to watch"):
        StopLearning([])
    with pytest.raises(UserError, match="same number of layers"):
        stop_epoch([[1.0], [1.0, 2.0]])
    with pytest.raises(UserError, match="not finite"):
        stop_epoch([[math.nan]] * 9)
    identity = nn.Identity()
    with StopLearning([identity]), pytest.raises(UserError, match="Identity gives no tensor of several numbers"):
        identity(torch.ones(1))
