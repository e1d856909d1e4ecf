from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.initialization import initialize
from assay.nn.norm.layer_norm import LayerNorm
from assay.optim import constraints, parameter_groups
from assay.optim.constraint.normalize_and_project import NormalizeAndProject


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Network(nn.Module):
    """ReLU between two normed layers, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5, bias=False), nn.Linear(5, 4, bias=False)
        self.norms = nn.ModuleList([LayerNorm(5, eps=0.0), LayerNorm(4, eps=0.0)])
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.first(x)))
        return self.head(F.relu(self.norms[1](self.second(x))))


def network() -> Network:
    model = Network().double()
    for index, linear in enumerate((model.first, model.second, model.head)):
        linear.weight.data.copy_(draw(*linear.weight.shape, seed=index))
    return model


def move(model: nn.Module) -> dict[str, Tensor]:
    """As if an optimizer had made a large step; what was there then."""
    for index, parameter in enumerate(model.parameters()):
        parameter.data += draw(*parameter.shape, seed=50 + index) / 2
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_hidden_matrices_have_their_first_norm_again_and_keep_their_direction() -> None:
    model = network()
    starts = {name: p.norm().item() for name, p in model.named_parameters()}
    constraint = NormalizeAndProject(model)
    moved = move(model)
    constraint(1, 0.0)
    for name, parameter in model.named_parameters():
        if name in ("first.weight", "second.weight"):
            assert parameter.norm().item() == pytest.approx(starts[name], rel=1e-12)
            assert F.cosine_similarity(parameter.flatten(), moved[name].flatten(), dim=0).item() == pytest.approx(1)
            assert not torch.equal(parameter, moved[name])
        else:
            assert torch.equal(parameter, moved[name])


@pytest.mark.parametrize("gains", ["decay", "project"])
def test_the_projection_does_not_change_what_the_network_computes(gains: str) -> None:
    """Joint projection of gains and offsets: only for a gain whose result is normed again behind ReLU."""
    model = network()
    constraint = NormalizeAndProject(model, gains=gains, gain_decay=0.0)
    move(model)
    x = draw(7, 3, seed=9)
    with torch.no_grad():
        before = F.relu(model.norms[0](model.first(x)))
        normed = model.norms[1](model.second(before))
        logits = model(x)
        constraint(1, 0.1)
        after = F.relu(model.norms[0](model.first(x)))
        unprojected = F.layer_norm(model.second(after), (4,), eps=0.0)
    ratio = after[before > 0] / before[before > 0]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    if gains == "decay":
        assert ratio[0].item() == pytest.approx(1)
        torch.testing.assert_close(model(x), logits)
    else:
        assert abs(ratio[0].item() - 1) > 0.01
        again = unprojected * model.norms[1].weight + model.norms[1].bias
        scale = again / normed
        torch.testing.assert_close(scale, scale[:1, :1].expand_as(scale))


class TestGainsAndOffsets:
    def test_projected_jointly_they_have_the_norm_of_their_start(self) -> None:
        model = network()
        constraint = NormalizeAndProject(model, gains="project")
        moved = move(model)
        constraint(1, 0.0)
        for index, size in ((0, 5), (1, 4)):
            norm = model.norms[index]
            joint = torch.cat([norm.weight, norm.bias])
            assert joint.norm().item() == pytest.approx(size**0.5)
            old = torch.cat([moved[f"norms.{index}.weight"], moved[f"norms.{index}.bias"]])
            torch.testing.assert_close(joint / joint.norm(), old / old.norm())

    def test_decayed_they_move_towards_their_start(self) -> None:
        model = network()
        constraint = NormalizeAndProject(model, gains="decay", gain_decay=0.5)
        moved = move(model)
        constraint(1, 0.2)
        for index in (0, 1):
            old_gain, old_offset = moved[f"norms.{index}.weight"], moved[f"norms.{index}.bias"]
            torch.testing.assert_close(model.norms[index].weight, old_gain - 0.1 * (old_gain - 1))
            torch.testing.assert_close(model.norms[index].bias, 0.9 * old_offset)
        assert torch.equal(model.head.bias, moved["head.bias"])

    def test_fixed_they_are_as_at_the_start(self) -> None:
        model = network()
        constraint = NormalizeAndProject(model, gains="fixed")
        move(model)
        constraint(1, 0.0)
        for norm in model.norms:
            assert torch.equal(norm.weight, torch.ones_like(norm.weight))
            assert torch.equal(norm.bias, torch.zeros_like(norm.bias))


def test_matrices_wait_for_their_step_and_gains_do_not() -> None:
    model = network()
    constraint = NormalizeAndProject(model, every=3, gains="fixed")
    start = model.first.weight.norm().item()
    for step in range(1, 7):
        move(model)
        constraint(step, 0.0)
        assert (model.first.weight.norm().item() == pytest.approx(start)) is (step % 3 == 0)
        assert torch.equal(model.norms[0].weight, torch.ones(5).double())


def test_what_starts_at_zero_is_left_alone() -> None:
    model = network()
    model.second.weight.data.zero_()
    model.norms[0].weight.data.zero_()
    constraint = NormalizeAndProject(model, gains="project")
    moved = move(model)
    constraint(1, 0.0)
    for name in ("second.weight", "norms.0.weight", "norms.0.bias"):
        assert torch.equal(model.get_parameter(name), moved[name])


def loss_of(weight: Tensor, x: Tensor, target: Tensor) -> Tensor:
    return (F.rms_norm(x @ weight.T, (5,), eps=0.0) - target).square().sum()


def descent(radius: float, lr: float, project: Callable[[Tensor, float], Tensor]) -> Tensor:
    """The direction of a scale-invariant matrix after steps of gradient descent from norm ``radius``."""
    x, target = draw(6, 3, seed=1), draw(6, 5, seed=2)
    weight = draw(5, 3)
    weight = radius * weight / weight.norm()
    for _ in range(20):
        weight = weight.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(weight, x, target), weight)
        assert (gradient * weight).sum().item() == pytest.approx(0, abs=1e-9)
        before = weight.detach()
        weight = before - lr * gradient
        expected = before.square().sum() + lr**2 * gradient.square().sum()
        assert weight.square().sum().item() == pytest.approx(expected.item())
        weight = project(weight, radius)
    return weight / weight.norm()


def test_projected_descent_at_one_norm_is_that_at_another_with_the_rate_by_its_square() -> None:
    """Each step alone makes the matrix longer; projected, lr / ‖W‖² is all that matters."""

    def project(weight: Tensor, radius: float) -> Tensor:
        return weight * radius / weight.norm()

    one, other = descent(1.0, 0.002, project), descent(3.0, 0.018, project)
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert (descent(3.0, 0.002, project) - one).norm() > 0.01
    assert (descent(1.0, 0.002, lambda weight, radius: weight) - one).norm() > 1e-4


def decoder(**fields: Any) -> Decoder:
    sizes = {"depth": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 31, "max_length": 8}
    mixer = {"name": "softmax", "qk_norm": True}
    model = Decoder(ModelConfig.parse({**sizes, "mlp": "normed-swiglu", "mixer": mixer, **fields})).double()
    initialize(model, 0, 0.3)
    return model


@pytest.mark.parametrize("head", ["untied", "tied"])
def test_of_a_decoder_all_matrices_but_embedding_and_head_are_projected(head: str) -> None:
    model = decoder(head=head, position="learned")
    starts = {name: p.norm().item() for name, p in model.named_parameters()}
    constraint = NormalizeAndProject(model)
    move(model)
    constraint(1, 0.0)
    kept = {name for name, p in model.named_parameters() if abs(p.norm().item() / starts[name] - 1) < 1e-9}
    branches = [("mixer", m) for m in ("query", "key", "value", "output")] + [
        ("mlp", m) for m in ("gate", "up", "down")
    ]
    assert kept == {f"layers.{n}.{part}.branch.{name}.weight" for n in (0, 1) for part, name in branches}
    matrices = [g for g in parameter_groups(model) if g["role"] == "matrix"]
    assert len(kept) == sum(len(group["params"]) for group in matrices)


def test_queries_keys_and_gates_of_the_patch_are_scale_invariant() -> None:
    model, ids = decoder(norm={"name": "rms-norm", "eps": 0.0}), torch.arange(8)[None]
    for layer in model.layers:
        layer.mlp.branch.norm.eps = 0.0
    expected = model(ids)
    for layer in model.layers:
        for linear in (layer.mixer.branch.query, layer.mixer.branch.key, layer.mlp.branch.gate):
            linear.weight.data *= 7
    torch.testing.assert_close(model(ids), expected, rtol=1e-9, atol=1e-11)


def test_none_changes_nothing() -> None:
    model = network()
    constraint = constraints.build("none", model=model)
    moved = move(model)
    constraint(1, 0.1)
    assert all(torch.equal(parameter, moved[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("options", [{"every": 0}, {"gains": "free"}, {"gain_decay": -1}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        constraints.validate("normalize-and-project", options)
