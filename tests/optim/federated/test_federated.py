"""Rounds of federated adversarial learning: the worked example, and the simpler methods that they contain."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import UserError
from assay.optim.federated import PGD, Client, FederatedAdversarial

ATTACK = PGD(radius=0.1, step_size=0.05, steps=3, random_start=False)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def client(count: int, seed: int) -> Client:
    return draw(count, 4, seed=seed), torch.arange(count) % 3


CLIENTS = [client(5, 1), client(9, 2), client(3, 3)]


def trained(clients: list[Client] = CLIENTS, rounds: int = 2, **options: Any) -> Tensor:
    model = network()
    protocol = FederatedAdversarial(**{"attack": ATTACK, "local_steps": 2, "local_lr": 0.3, **options})
    for number in range(rounds):
        protocol.round(model, clients, number)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


class TestWorkedExample:
    """f = u x, l = (u x − y)² / 2, ρ = 0.1, η_local = 0.5, clients (1, 0) and (1, 2), u = 1."""

    def after(self, local_steps: int, global_lr: float = 1.0) -> tuple[float, float]:
        model = nn.Linear(1, 1, bias=False).double()
        nn.init.ones_(model.weight)
        attack = PGD(radius=0.1, step_size=0.1, steps=1, random_start=False)
        clients = [(torch.ones(1, 1).double(), torch.full((1, 1), y).double()) for y in (0.0, 2.0)]
        loss = FederatedAdversarial(
            attack,
            local_steps=local_steps,
            local_lr=0.5,
            global_lr=global_lr,
            loss=lambda z, y: (z - y).square().mean() / 2,
        ).round(model, clients, 0)
        return model.weight.item(), loss

    def test_the_weight(self) -> None:
        assert self.after(1)[0] == pytest.approx(0.945, abs=1e-12)
        assert self.after(2)[0] == pytest.approx(0.972775, abs=1e-12)
        assert self.after(2, global_lr=0.5)[0] == pytest.approx(0.9863875, abs=1e-12)

    def test_the_robust_loss_is_that_before_the_round(self) -> None:
        assert self.after(2)[1] == pytest.approx((1.1**2 + 1.1**2) / 4)


def test_one_client_and_one_step_is_adversarial_training() -> None:
    x, y = CLIENTS[1]
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(3):
        attacked = ATTACK(model, x, y)
        optimizer.zero_grad()
        F.cross_entropy(model(attacked), y).backward()
        optimizer.step()
    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.testing.assert_close(trained([(x, y)], rounds=3, local_steps=1), expected)


@pytest.mark.parametrize("attack", [None, PGD(radius=0.0, step_size=1.0, steps=2)])
def test_without_a_radius_is_federated_averaging(attack: PGD | None) -> None:
    """Weights averaged by numbers of samples, each client's by torch's SGD."""
    server = network()
    for _ in range(2):
        weights = []
        for x, y in CLIENTS:
            model = copy.deepcopy(server)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
            for _ in range(2):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            weights.append(nn.utils.parameters_to_vector(model.parameters()).detach())
        mean = (5 * weights[0] + 9 * weights[1] + 3 * weights[2]) / 17
        nn.utils.vector_to_parameters(mean, server.parameters())
    torch.testing.assert_close(trained(attack=attack), mean)


def test_one_local_step_is_gradient_descent_on_all_data() -> None:
    """Whatever the heterogeneity: U − η_global η_local ∇L(U; x̃)."""
    model = network()
    x, y = (torch.cat(parts) for parts in zip(*CLIENTS, strict=True))
    loss = F.cross_entropy(model(ATTACK(model, x, y)), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    expected = before - 0.7 * 0.3 * torch.cat([gradient.flatten() for gradient in gradients])
    torch.testing.assert_close(trained(rounds=1, local_steps=1, global_lr=0.7), expected)
    protocol = FederatedAdversarial(ATTACK, local_steps=4)
    assert protocol.round(network(), CLIENTS, 0) == pytest.approx(loss.item())


def test_fresh_samples_in_every_step_or_in_every_round() -> None:
    once = {"local_steps": 1}
    assert torch.equal(trained(**once), trained(**once, regenerate="round"))
    assert not torch.allclose(trained(), trained(regenerate="round"), atol=1e-6)
    model = network()
    fixed = [(ATTACK(model, x, y), y) for x, y in CLIENTS]
    torch.testing.assert_close(trained(rounds=1, regenerate="round"), trained(fixed, rounds=1, attack=None))


def test_invariances() -> None:
    start = nn.utils.parameters_to_vector(network().parameters()).detach()
    same = [CLIENTS[0]]
    torch.testing.assert_close(trained(same), trained(same * 4))
    for order in itertools.permutations(CLIENTS):
        torch.testing.assert_close(trained(list(order)), trained())
    for still in ({"global_lr": 0.0}, {"local_lr": 0.0}):
        assert torch.equal(trained(**still), start)
    once, twice = trained(rounds=1), trained(rounds=1, global_lr=2.0)
    torch.testing.assert_close(twice - start, 2 * (once - start))


def test_a_round_depends_on_model_and_number_alone() -> None:
    """Random starts and batches included: what is saved between rounds is the model."""
    options: dict[str, Any] = {"attack": PGD(radius=0.1, step_size=0.05, steps=2), "batch_size": 2, "seed": 4}
    protocol = FederatedAdversarial(**options, local_steps=3)
    whole, halves = network(), network()
    for number in range(4):
        torch.rand(number)
        protocol.round(whole, CLIENTS, number)
    for number in range(2):
        protocol.round(halves, CLIENTS, number)
    again = network()
    again.load_state_dict(halves.state_dict())
    for number in (2, 3):
        FederatedAdversarial(**options, local_steps=3).round(again, CLIENTS, number)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    other, replaced = network(), {**options, "seed": 5}
    for number in range(4):
        FederatedAdversarial(**replaced, local_steps=3).round(other, CLIENTS, number)
    assert not torch.equal(whole[0].weight, other[0].weight)


def test_batches_go_through_all_samples() -> None:
    """Four batches of two are one pass over eight samples, each once."""
    seen = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return logits.square().mean()

    clients = [(draw(8, 4), torch.arange(8))]
    FederatedAdversarial(None, local_steps=4, batch_size=2, loss=loss).round(network(), clients, 0)
    assert [len(labels) for labels in seen] == [2, 2, 2, 2]
    assert torch.cat(seen).sort().values.tolist() == list(range(8))


def test_buffers_are_averaged_and_frozen_parameters_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    model[0].weight.requires_grad_(False)
    frozen, width = model[0].weight.clone(), model[0](CLIENTS[0][0]).mean(0).detach()
    means = [model[0](x).mean(0).detach() for x, _ in CLIENTS]
    FederatedAdversarial(None, local_steps=1, local_lr=0.1).round(model, CLIENTS, 0)
    expected = 0.1 * (5 * means[0] + 9 * means[1] + 3 * means[2]) / 17
    torch.testing.assert_close(model[1].running_mean, expected)
    assert torch.equal(model[0].weight, frozen)
    assert torch.equal(means[0], width)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_steps": 0}, "local_steps=0: a client takes at least 1"),
        ({"local_lr": -0.1}, "local_lr=-0.1: it should be at least 0"),
        ({"global_lr": float("nan")}, "global_lr=nan"),
        ({"batch_size": 0}, "batch_size=0: a batch has at least 1 sample"),
        ({"regenerate": "never"}, "regenerate='never': it should be 'step' or 'round'"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FederatedAdversarial(attack=None, **options)


def test_clients_need_samples() -> None:
    empty = (torch.zeros(0, 4), torch.zeros(0).long())
    for clients in ([], [CLIENTS[0], empty]):
        with pytest.raises(UserError, match="each should have a sample"):
            FederatedAdversarial(None).round(network(), clients, 0)
