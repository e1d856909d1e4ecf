"""Muon against torch's own, its AdamW half against AdamW, and Newton-Schulz against the polynomial that it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.optim import optimizers, parameter_groups
from assay.optim.muon import COEFFICIENTS, Muon, orthogonalize

SHAPES = [(8, 8), (12, 5), (5, 12), (8, 8), (12, 5), (1, 6)]


@pytest.fixture
def wide_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton-Schulz in the precision of its argument, so that only rounding of float64 is left to differ."""
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_singular_values(rows: int, columns: int, values: Tensor, seed: int = 0) -> Tensor:
    u, _ = torch.linalg.qr(draw(rows, len(values), seed=seed, dtype=torch.float64))
    v, _ = torch.linalg.qr(draw(columns, len(values), seed=seed + 1, dtype=torch.float64))
    return u @ torch.diag(values) @ v.T


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(draw(*shape, seed=i, dtype=dtype)) for i, shape in enumerate(SHAPES)]


def muon(weights: list[nn.Parameter], **options: Any) -> Muon:
    return Muon([{"params": weights, "role": "matrix", "decay": True}], lr=0.02, **options)


def advance(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], step: int) -> None:
    for index, weight in enumerate(weights):
        weight.grad = draw(*weight.shape, seed=100 * step + index, dtype=weight.dtype)
    optimizer.step()


class TestAgainstTorch:
    OPTIONS = ({}, {"nesterov": False}, {"momentum": 0.5, "weight_decay": 0.4}, {"weight_decay": 0.0})

    @pytest.mark.parametrize("options", OPTIONS)
    def test_the_same_algorithm(self, wide_precision: None, options: dict[str, Any]) -> None:
        ours, theirs = parameters(torch.float64), parameters(torch.float64)
        one = muon(ours, **options)
        other = torch.optim.Muon(theirs, lr=0.02, adjust_lr_fn="match_rms_adamw", **{"weight_decay": 0.1, **options})
        for step in range(6):
            advance(one, ours, step)
            advance(other, theirs, step)
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-9, atol=1e-11)

    def test_in_bfloat16_to_its_rounding(self) -> None:
        ours, theirs, start = parameters(), parameters(), parameters()
        one = muon(ours, weight_decay=0.0)
        other = torch.optim.Muon(theirs, lr=0.02, adjust_lr_fn="match_rms_adamw", weight_decay=0.0)
        for step in range(6):
            advance(one, ours, step)
            advance(other, theirs, step)
            for a, b, origin in zip(ours, theirs, start, strict=True):
                assert (a - b).norm() <= 0.02 * (b - origin).norm()

    def test_the_adamw_half_bit_for_bit(self) -> None:
        def network() -> nn.Sequential:
            torch.manual_seed(0)
            return nn.Sequential(nn.Embedding(7, 6), nn.LayerNorm(6))

        ours, theirs = network(), network()
        options = {"betas": (0.8, 0.9), "eps": 1e-6}
        one = Muon(parameter_groups(ours), lr=0.01, weight_decay=0.3, **options)
        embedding, *vectors = theirs.parameters()
        groups = [{"params": [embedding], "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]
        other = torch.optim.AdamW(groups, lr=0.01, fused=True, **options)
        for step in range(5):
            for optimizer, model in ((one, ours), (other, theirs)):
                advance(optimizer, list(model.parameters()), step)
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                assert torch.equal(a, b)


class TestOrthogonalize:
    def test_is_a_polynomial_of_the_singular_values(self, wide_precision: None) -> None:
        """X ← aX + bXXᵀX + c(XXᵀ)²X acts on each singular value s as s ← as + bs³ + cs⁵."""
        values = torch.tensor([1.0, 0.6, 0.3, 0.05, 1e-3], dtype=torch.float64)
        matrix = with_singular_values(9, 6, values)
        a, b, c = COEFFICIENTS
        s = values / values.norm()
        for _ in range(5):
            s = a * s + b * s**3 + c * s**5
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        expected = u[:, :5] @ torch.diag(s) @ v[:5]
        torch.testing.assert_close(orthogonalize(matrix[None])[0], expected, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize(("rows", "columns"), [(16, 16), (24, 10), (10, 24)])
    def test_singular_values_come_near_one(self, rows: int, columns: int) -> None:
        values = torch.logspace(0, -1.5, min(rows, columns), dtype=torch.float64)
        matrix = with_singular_values(rows, columns, values).float()
        reached = torch.linalg.svdvals(orthogonalize(matrix[None])[0])
        assert reached.min() > 0.6
        assert reached.max() < 1.3
        singular_vectors = torch.linalg.svd(matrix, full_matrices=False)
        polar = singular_vectors.U @ singular_vectors.Vh
        assert (orthogonalize(matrix[None])[0] * polar).sum() / polar.norm() ** 2 > 0.8

    def test_scale_does_not_matter(self) -> None:
        matrix = draw(3, 8, 12)
        for power in (-20, -3, 5, 20):
            assert torch.equal(orthogonalize(matrix * 2.0**power), orthogonalize(matrix))

    def test_a_tall_matrix_is_the_transpose_of_a_wide_one(self) -> None:
        matrix = draw(2, 7, 20)
        torch.testing.assert_close(orthogonalize(matrix.mT), orthogonalize(matrix).mT)

    def test_a_batch_is_its_matrices_one_by_one(self) -> None:
        batch = draw(4, 16, 9)
        alone = torch.cat([orthogonalize(matrix[None]) for matrix in batch])
        assert (orthogonalize(batch) - alone).norm() <= 0.02 * alone.norm()

    def test_zero_stays_zero(self) -> None:
        assert torch.equal(orthogonalize(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def test_an_update_is_as_large_as_adamws() -> None:
    """0.2 √max(rows, columns) · U has the root mean square 0.2 where U has singular values 1."""
    for shape in ((32, 32), (64, 16), (16, 64)):
        weight = nn.Parameter(torch.zeros(shape))
        optimizer = muon([weight], weight_decay=0.0)
        advance(optimizer, [weight], 1)
        assert weight.detach().square().mean().sqrt().item() / 0.02 == pytest.approx(0.2, rel=0.25)


def test_a_kernel_is_flattened_to_a_matrix() -> None:
    kernels = [nn.Parameter(draw(6, 2, 3, 2)), nn.Parameter(draw(20, 2, 3, 2, seed=1))]
    matrices = [nn.Parameter(kernel.detach().clone().flatten(1)) for kernel in kernels]
    one, other = muon(kernels), muon(matrices)
    for step in range(3):
        advance(one, kernels, step)
        for matrix, kernel in zip(matrices, kernels, strict=True):
            assert kernel.grad is not None
            matrix.grad = kernel.grad.flatten(1)
        other.step()
    for matrix, kernel in zip(matrices, kernels, strict=True):
        assert torch.equal(kernel.flatten(1), matrix)


def test_parameters_without_gradient_stay_as_they_are() -> None:
    used, unused = nn.Parameter(draw(4, 4)), nn.Parameter(draw(4, 4, seed=1))
    vector = nn.Parameter(draw(4))
    groups = [
        {"params": [used, unused], "role": "matrix", "decay": True},
        {"params": [vector], "role": "vector", "decay": False},
    ]
    optimizer = Muon(groups, lr=0.1)
    before = unused.detach().clone(), vector.detach().clone(), used.detach().clone()
    advance(optimizer, [used], 0)
    assert torch.equal(unused, before[0])
    assert torch.equal(vector, before[1])
    assert not torch.equal(used, before[2])
    assert set(optimizer.state) == {used}


def test_the_closure_is_called_with_gradients() -> None:
    weight = nn.Parameter(draw(3, 3))
    optimizer = muon([weight])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    expected = weight.detach().square().sum()
    assert torch.equal(optimizer.step(closure), expected)
    assert weight.detach().square().sum() < expected


class TestState:
    def network(self) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 9, bias=False))

    def train(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            ids = torch.randint(9, (4, 8), generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(1).flatten()).backward()
            optimizer.step()

    def test_a_saved_optimizer_goes_on_bit_for_bit(self, tmp_path: Path) -> None:
        whole, model = self.network(), self.network()
        one = optimizers.build("muon", params=parameter_groups(whole), lr=0.01)
        self.train(whole, one, range(6))
        first = optimizers.build("muon", params=parameter_groups(model), lr=0.01)
        self.train(model, first, range(3))
        torch.save(first.state_dict(), tmp_path / "state")
        saved = torch.load(tmp_path / "state", weights_only=True)
        second = optimizers.build("muon", params=parameter_groups(model), lr=0.5)
        second.load_state_dict(saved)
        assert {group["lr"] for group in second.param_groups} == {0.01}
        self.train(model, second, range(3, 6))
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))

    def test_each_half_has_its_own_state(self) -> None:
        model = self.network()
        optimizer = Muon(parameter_groups(model), lr=0.01)
        self.train(model, optimizer, range(2))
        assert set(optimizer.state[model[1].weight]) == {"momentum"}
        for parameter in (model[0].weight, model[1].bias, model[2].weight):
            assert set(optimizer.state[parameter]) == {"step", "exp_avg", "exp_avg_sq"}
            assert optimizer.state[parameter]["step"].item() == 2

    def test_a_loaded_state_is_where_the_parameters_are(self) -> None:
        """Also the step counter: the fused kernel takes it on the parameters' device only."""
        model = self.network()
        optimizer = Muon(parameter_groups(model), lr=0.01)
        self.train(model, optimizer, range(1))
        elsewhere = copy.deepcopy(model).to("meta")
        moved = Muon(parameter_groups(elsewhere), lr=0.01)
        moved.load_state_dict(optimizer.state_dict())
        assert {value.device.type for state in moved.state.values() for value in state.values()} == {"meta"}

    def test_learns(self) -> None:
        """A plain loop, with torch's own schedulers: the loss on a fixed batch falls below a tenth."""
        model = self.network()
        optimizer = Muon(parameter_groups(model), lr=0.05, weight_decay=0.0)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        ids = torch.arange(9)[None]
        history = []
        for _ in range(100):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(1).flatten())
            loss.backward()
            optimizer.step()
            scheduler.step()
            history.append(loss.item())
        assert history[-1] < 0.1 * history[0]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
