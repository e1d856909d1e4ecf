"""Normalized LR+GD: the paper's table, its limits and bounds, and torch and numpy as independent implementations."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import UserError
from assay.optim.normalized_logistic_gd import (
    Method,
    NormalizedLogisticGD,
    Separation,
    class_margins,
    most_steps,
    normalized_misfit,
    separate,
    worst_case,
)

PAIR = torch.tensor([[1.0, -1.0], [-1.0, -4.0]]), torch.tensor([1.0, -1.0])


def steps(n: int, method: Method, lr: float = 1.0) -> int:
    found = separate(*worst_case(n), method=method, lr=lr)
    assert found.separated
    return found.steps


def separable(seed: int, n: int = 30, features: int = 4) -> tuple[Tensor, Tensor]:
    """Points on both sides of a random plane through the origin, at a distance of at least 0.1."""
    generator = torch.Generator().manual_seed(seed)
    normal = F.normalize(torch.randn(features, generator=generator, dtype=torch.float64), dim=0)
    x = torch.randn(4 * n, features, generator=generator, dtype=torch.float64)
    x = x[(x @ normal).abs() > 0.1][:n]
    return x, (x @ normal).sign()


def by_numpy(x: np.ndarray, y: np.ndarray, lr: float, count: int, *, normalized: bool) -> list[np.ndarray]:
    theta, path = np.zeros(x.shape[1]), []
    for _ in range(count):
        w = 1 / (1 + np.exp(y * (x @ theta)))
        theta = theta + lr * (w * y) @ x / (w.sum() if normalized else len(y))
        path.append(theta)
    return path


class TestTable:
    """Steps until all margins are positive on the worst-case data."""

    @pytest.mark.parametrize(
        ("n", "normalized", "logistic"),
        [(1000, (2, 2, 16, 157), 308), (100, (2, 2, 11, 110), 31), (10, (2, 2, 7, 60), 4)],
    )
    def test_of_the_paper(self, n: int, normalized: tuple[int, ...], logistic: int) -> None:
        """The paper's row is n = 1000."""
        found = tuple(steps(n, "normalized-logistic-gd", lr) for lr in (100, 10, 1, 0.1))
        assert found == normalized
        assert steps(n, "logistic-gd", 100) == logistic

    def test_smaller_steps_of_gradient_descent_are_slower_still(self) -> None:
        assert steps(1000, "logistic-gd", 1) == 7313

    def test_only_the_normalised_perceptron_does_not_feel_the_imbalance(self) -> None:
        assert [steps(n, "batch-perceptron") for n in (100, 1000)] == [31, 301]
        assert [steps(n, "normalized-batch-perceptron") for n in (10, 100, 1000)] == [2, 2, 2]


class TestWorkedNumbers:
    def path(self, method: Method, lr: float, count: int) -> list[float]:
        found = separate(*PAIR, method=method, lr=lr, max_steps=count)
        assert found.steps == count
        return found.weight.tolist()

    def test_normalised(self) -> None:
        assert self.path("normalized-logistic-gd", 1.0, 1) == [1.0, 1.5]
        assert self.path("normalized-logistic-gd", 1.0, 2) == pytest.approx([2.0, 0.50731], abs=1e-5)
        assert separate(*PAIR, lr=1.0).separated

    def test_gradient_descent_separates_while_its_loss_explodes(self) -> None:
        losses = []
        for lr in (1e2, 1e4):
            assert [x / lr for x in self.path("logistic-gd", lr, 1)] == [0.5, 0.75]
            found = separate(*PAIR, method="logistic-gd", lr=lr)
            assert (found.weight / lr).tolist() == pytest.approx([1.0, 0.25], abs=1e-9)
            assert found.separated
            losses.append(found.losses[1])
        assert losses[1] == pytest.approx(100 * losses[0], rel=1e-6)


class TestIdentities:
    x, y = separable(3)

    def test_a_step_is_a_convex_combination_and_at_most_as_long_as_a_sample(self) -> None:
        before, radius = torch.zeros(4, dtype=torch.float64), self.x.norm(dim=1).max()
        for count in range(1, 15):
            after = separate(self.x, self.y, lr=0.5, max_steps=count).weight
            assert (after - before).norm() <= 0.5 * radius + 1e-12
            before = after
        first = separate(self.x, self.y, lr=0.5, max_steps=1).weight
        torch.testing.assert_close(first, 0.5 * (self.y[:, None] * self.x).mean(0))

    def test_doubled_data_take_the_same_path(self) -> None:
        once = separate(self.x, self.y, lr=0.1)
        twice = separate(self.x.repeat(2, 1), self.y.repeat(2), lr=0.1)
        assert once.steps == twice.steps
        torch.testing.assert_close(once.weight, twice.weight, rtol=1e-10, atol=1e-12)

    def test_is_gradient_descent_with_a_step_that_grows(self) -> None:
        """η β_t with β_0 = 2 and β_t ≥ 1, by torch's SGD on the logistic loss."""
        theta = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        optimizer = torch.optim.SGD([theta], lr=1.0)
        for count in range(1, 12):
            margins = self.y * (self.x @ theta)
            beta = 1 / margins.neg().sigmoid().mean().item()
            assert beta == 2 if count == 1 else beta >= 1
            optimizer.param_groups[0]["lr"] = 0.3 * beta
            optimizer.zero_grad()
            F.softplus(-margins).mean().backward()
            optimizer.step()
            expected = separate(self.x, self.y, lr=0.3, max_steps=count)
            if expected.steps < count:
                break
            torch.testing.assert_close(theta.detach(), expected.weight, rtol=1e-10, atol=1e-12)
        assert count > 3

    @pytest.mark.parametrize("normalized", [True, False])
    def test_against_numpy(self, normalized: bool) -> None:
        method: Method = "normalized-logistic-gd" if normalized else "logistic-gd"
        path = by_numpy(self.x.numpy(), self.y.numpy(), 0.2, 8, normalized=normalized)
        for count, theta in enumerate(path, 1):
            found = separate(self.x, self.y, method=method, lr=0.2, max_steps=count)
            np.testing.assert_allclose(found.weight.numpy(), theta, rtol=1e-10)

    @pytest.mark.parametrize(
        ("method", "limit"),
        [("logistic-gd", "batch-perceptron"), ("normalized-logistic-gd", "normalized-batch-perceptron")],
    )
    def test_large_steps_are_a_perceptron(self, method: Method, limit: Method) -> None:
        large = separate(self.x, self.y, method=method, lr=1e6)
        perceptron = separate(self.x, self.y, method=limit)
        assert large.steps == perceptron.steps > 1
        torch.testing.assert_close(large.weight / 1e6, perceptron.weight, rtol=1e-4, atol=1e-6)

    def test_weights_survive_underflow(self) -> None:
        weights = normalized_misfit(torch.tensor([2000.0, 2001.0, 4000.0], dtype=torch.float64))
        torch.testing.assert_close(weights, torch.tensor([1.0, math.exp(-1), 0.0]).double() / (1 + math.exp(-1)))


def largest_margin(x: Tensor, y: Tensor) -> float:
    """μ by scikit-learn: z and −z with both labels have a separator without offset."""
    svm = pytest.importorskip("sklearn.svm")
    z = (y[:, None] * x).numpy()
    machine = svm.SVC(kernel="linear", C=1e9, tol=1e-6)
    machine.fit(np.concatenate([z, -z]), [1] * len(z) + [-1] * len(z))
    direction = machine.coef_[0] / np.linalg.norm(machine.coef_)
    return float((z @ direction).min())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), lr=st.sampled_from([0.1, 1.0, 30.0]))
def test_no_method_needs_more_steps_than_its_bound(seed: int, lr: float) -> None:
    x, y = separable(seed)
    margin, radius = largest_margin(x, y), x.norm(dim=1).max().item()
    for method in get_args(Method):
        found = separate(x, y, method=method, lr=lr)
        assert found.separated
        assert found.steps <= most_steps(len(y), radius=radius, margin=margin, method=method, lr=lr)
    assert most_steps(9, radius=2.0, margin=1.0, method="batch-perceptron") == 36
    assert most_steps(9, radius=2.0, margin=1.0, method="normalized-logistic-gd", lr=2.0) == 4 + math.log(17)


class TestOptimizer:
    def test_on_a_linear_model_is_the_paper_s_method(self) -> None:
        x, y = separable(5)
        model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(model.weight)
        optimizer = NormalizedLogisticGD(model.parameters(), lr=0.3)
        count = 0
        while (optimizer.step(lambda: y * model(x)[:, 0]) <= 0).any():
            count += 1
            expected = separate(x, y, lr=0.3, max_steps=count).weight
            torch.testing.assert_close(model.weight[0].detach(), expected, rtol=1e-10, atol=1e-12)
        assert count == separate(x, y, lr=0.3).steps > 1

    def test_of_a_network_is_the_cross_entropy_s_gradient_over_the_mean_misfit(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        x, labels = torch.randn(20, 5), torch.arange(20) % 3
        before = [p.detach().clone() for p in model.parameters()]
        logits = model(x)
        misfit = 1 - logits.softmax(-1)[torch.arange(20), labels]
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels), list(model.parameters()))
        margins = NormalizedLogisticGD(model.parameters(), lr=0.5).step(lambda: class_margins(model(x), labels))
        torch.testing.assert_close(F.softplus(-margins).mean(), F.cross_entropy(logits, labels))
        for p, start, gradient in zip(model.parameters(), before, gradients, strict=True):
            torch.testing.assert_close(p.detach(), start - 0.5 * gradient / misfit.mean(), rtol=1e-4, atol=1e-6)

    def test_does_not_undo_a_separation(self) -> None:
        """Another step of 100 would, on the worst-case data."""
        x, y = worst_case(1000)
        weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        optimizer = NormalizedLogisticGD([weight], lr=100)
        margins = [optimizer.step(lambda: y * (x @ weight)) for _ in range(4)]
        assert [bool((m > 0).all()) for m in margins] == [False, False, True, True]
        further = weight.detach() + 100 * normalized_misfit(margins[-1]) @ (y[:, None] * x)
        assert not (y * (x @ further) > 0).all()

    def test_groups_have_rates_of_their_own_and_state_is_empty(self) -> None:
        one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        optimizer = NormalizedLogisticGD([{"params": [one]}, {"params": [other], "lr": 4.0}], lr=1.0)
        x, y = PAIR
        optimizer.step(lambda: y * (x @ one + x @ other))
        assert one.tolist() == [1.0, 1.5]
        assert other.tolist() == [4.0, 6.0]
        assert optimizer.state_dict()["state"] == {}
        again = NormalizedLogisticGD([{"params": [one]}, {"params": [other]}], lr=9.0)
        again.load_state_dict(optimizer.state_dict())
        assert [group["lr"] for group in again.param_groups] == [1.0, 4.0]


class TestMistakes:
    def test_of_the_data(self) -> None:
        x, y = PAIR
        with pytest.raises(UserError, match="labels should be -1 and 1"):
            separate(x, torch.tensor([0.0, 1.0]))
        with pytest.raises(UserError, match=r"they should be \(n, features\) and \(n,\)"):
            separate(x[0], y)
        with pytest.raises(UserError, match="not finite"):
            separate(x / 0, y)
        with pytest.raises(UserError, match="n is at least 2"):
            worst_case(1)

    def test_of_the_options(self) -> None:
        with pytest.raises(UserError, match="lr=0"):
            separate(*PAIR, lr=0)
        with pytest.raises(UserError, match="unknown method 'newton'; known: normalized-logistic-gd"):
            separate(*PAIR, method="newton")  # type: ignore[arg-type]

    def test_of_the_closure(self) -> None:
        weight = nn.Parameter(torch.zeros(2))
        with pytest.raises(UserError, match="lr=-1: a step size is positive"):
            NormalizedLogisticGD([weight], lr=-1)
        optimizer = NormalizedLogisticGD([weight])
        with pytest.raises(UserError, match="needs a closure"):
            optimizer.step()
        with pytest.raises(UserError, match="one margin of each sample"):
            optimizer.step(lambda: weight.sum())
        with pytest.raises(UserError, match="without gradient"):
            optimizer.step(lambda: torch.zeros(3))

    def test_data_that_no_plane_separates_are_said_to_be_so(self) -> None:
        x = torch.tensor([[1.0], [1.0]])
        found = separate(x, torch.tensor([1.0, -1.0]), max_steps=50)
        assert isinstance(found, Separation)
        assert (found.separated, found.steps, len(found.losses)) == (False, 50, 50)
