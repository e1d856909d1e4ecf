"""The attack against the closed-form worst case of linear models, and its own constraints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import UserError
from assay.optim.federated import PGD


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


class Logistic(nn.Module):
    """Logits 0 and wᵀx, whose worst case in a ball is x ∓ ρ sign(w) or x ∓ ρ w / ‖w‖."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        z = x @ self.weight
        return torch.stack([torch.zeros_like(z), z], dim=-1)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_finds_the_worst_case_of_a_linear_model(norm: Any, random_start: bool) -> None:
    weight, x, labels = draw(5), draw(8, 5, seed=1), torch.arange(8) % 2
    attack = PGD(radius=0.3, step_size=0.1, steps=60, norm=norm, random_start=random_start)
    found = attack(Logistic(weight), x, labels, generator=torch.Generator().manual_seed(0))
    direction = weight.sign() if norm == "linf" else weight / weight.norm()
    expected = x - 0.3 * (2 * labels[:, None] - 1) * direction
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_stays_in_the_ball_and_the_bounds_and_raises_the_loss(norm: Any) -> None:
    model, x, labels = network().eval(), draw(20, 3, 4, seed=1).sigmoid(), torch.arange(20) % 3
    attack = PGD(radius=0.2, step_size=0.5, steps=5, norm=norm, bounds=(0.0, 1.0))
    found = attack(model, x, labels, generator=torch.Generator().manual_seed(0))
    change = (found - x).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert size.max() <= 0.2 + 1e-6
    assert size.max() > 0.19
    assert found.min() >= 0
    assert found.max() <= 1
    assert F.cross_entropy(model(found), labels) > F.cross_entropy(model(x), labels)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball_evenly(norm: Any) -> None:
    """Half of the ball's points in d dimensions are within 2^(−1/d) of its radius."""
    attack = PGD(radius=2.0, step_size=0.0, steps=1, norm=norm)
    x = torch.zeros(4000, 3)
    found = attack(Logistic(draw(3)), x, torch.zeros(4000).long(), generator=torch.Generator().manual_seed(0))
    size = found.abs().amax(1) if norm == "linf" else found.norm(dim=1)
    assert size.max() <= 2
    assert (size < 2 * 0.5 ** (1 / 3)).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert found.mean(0).abs().max() < 0.1


def test_by_autograd_step_by_step() -> None:
    model, x, labels = network().eval(), draw(6, 3, 4, seed=1), torch.arange(6) % 3
    by_hand = x.clone()
    for _ in range(4):
        by_hand = by_hand.detach().requires_grad_()
        sum(F.cross_entropy(model(by_hand[i : i + 1]), labels[i : i + 1]) for i in range(6)).backward()
        by_hand = torch.minimum(torch.maximum(by_hand + 0.05 * by_hand.grad.sign(), x - 0.12), x + 0.12)
    found = PGD(radius=0.12, step_size=0.05, steps=4, random_start=False)(model, x, labels)
    torch.testing.assert_close(found, by_hand.detach())


def test_a_larger_radius_never_lowers_the_worst_loss() -> None:
    weight, x, labels = draw(5), draw(8, 5, seed=1), torch.arange(8) % 2
    losses = []
    for radius in (0.0, 0.1, 0.4, 1.0):
        attack = PGD(radius=radius, step_size=0.5, steps=5, random_start=False)
        losses.append(F.cross_entropy(Logistic(weight)(attack(Logistic(weight), x, labels)), labels).item())
    assert losses == sorted(losses)
    assert losses[0] == F.cross_entropy(Logistic(weight)(x), labels).item()


def test_leaves_the_model_as_it_was() -> None:
    model, x, labels = network(), draw(6, 3, 4, seed=1), torch.arange(6) % 3
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        found = PGD(radius=0.1, step_size=0.1, steps=2)(model, x, labels)
    assert not found.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [module.training for module in model] == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -1}, "radius=-1: it should be at least 0"),
        ({"step_size": float("inf")}, "step_size=inf"),
        ({"steps": 0}, "steps=0: an attack takes at least 1 step"),
        ({"norm": "l1"}, "norm='l1': it should be 'linf' or 'l2'"),
        ({"bounds": (1.0, 0.0)}, "the lower one comes first"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PGD(**{"radius": 0.1, "step_size": 0.1, **options})
