"""AdamW from groups: torch's own steps, with decay where the groups say so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.errors import UserError
from assay.optim import build_optimizer, optimizers, parameter_groups
from assay.slots import Component


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.LayerNorm(5))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    for step in range(steps):
        ids = torch.randint(7, (3, 4), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(ids).square().sum().backward()
        optimizer.step()


def test_equals_torch_bit_for_bit() -> None:
    ours, theirs = network(), network()
    options = {"betas": (0.8, 0.9), "eps": 1e-6}
    train(ours, optimizers.build("adamw", {**options, "weight_decay": 0.3}, params=parameter_groups(ours), lr=0.01))
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]
    train(theirs, torch.optim.AdamW(groups, lr=0.01, fused=True, **options))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_one_step_of_the_formula() -> None:
    """After one step m̂ = g and v̂ = g²: θ ← θ − η(g / (|g| + ε) + λθ)."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 4.0]]))
    gradient = torch.tensor([[0.1, -3.0], [2.0, 0.0]])
    group = {"params": [weight], "role": "matrix", "decay": True}
    optimizer = optimizers.build("adamw", {"eps": 0.5, "weight_decay": 0.2}, params=[group], lr=0.1)
    before = weight.detach().clone()
    weight.grad = gradient.clone()
    optimizer.step()
    expected = before - 0.1 * (gradient / (gradient.abs() + 0.5) + 0.2 * before)
    torch.testing.assert_close(weight.detach(), expected)


def test_without_gradient_only_what_is_decayed_shrinks() -> None:
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = optimizers.build("adamw", {"weight_decay": 0.5}, params=parameter_groups(model), lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old * (0.95 if old.ndim == 2 else 1.0))


def test_a_configured_component_is_built_over_the_model() -> None:
    model = network()
    component = Component.parse(optimizers, {"name": "adamw", "lr": 0.5, "betas": [0.1, 0.2]})
    optimizer = build_optimizer(component, model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert {(group["lr"], group["betas"]) for group in optimizer.param_groups} == {(0.5, (0.1, 0.2))}


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="'adamw' has no option 'beta'; nearest: betas"):
        Component.parse(optimizers, {"name": "adamw", "beta": [0.9, 0.95]})
    with pytest.raises(UserError, match="option weight_decay='much'"):
        Component.parse(optimizers, {"name": "adamw", "weight_decay": "much"})
    with pytest.raises(UserError, match="unknown optimizer 'adam'; nearest: adamw"):
        Component.parse(optimizers, "adam")
