from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.errors import UserError
from assay.nn.residual import ResidualStream, residuals
from assay.nn.residual.scaled import ScaledResidual


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(stream: ResidualStream, x: Tensor, branches: list[Tensor]) -> Tensor:
    state = stream.start(x)
    for sublayer, y in enumerate(branches):
        state = stream.write(state, y, sublayer)
    return stream.finish(state)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 5),
    skip=st.floats(-2, 2),
    branch=st.floats(-2, 2),
    learned=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_unrolls_to_powers_of_skip(count: int, skip: float, branch: float, learned: bool, seed: int) -> None:
    """x_n = aⁿ x_0 + b Σ_k aⁿ⁻¹⁻ᵏ y_k."""
    stream = ScaledResidual(3, count, skip=skip, branch=branch, learned=learned).double()
    x, branches = draw(2, 3, seed=seed), list(draw(count, 2, 3, seed=seed + 1))
    expected = skip**count * x
    for k, y in enumerate(branches):
        expected = expected + branch * skip ** (count - 1 - k) * y
    torch.testing.assert_close(run(stream, x, branches), expected, rtol=1e-6, atol=1e-6)


def test_both_weights_one_is_the_plain_stream() -> None:
    x, branches = draw(2, 3), list(draw(4, 2, 3, seed=1))
    scaled = run(ScaledResidual(3, 4, branch=1.0), x, branches)
    assert torch.equal(scaled, run(ResidualStream(), x, branches))


@pytest.mark.parametrize("count", [1, 4, 24])
def test_depth_keeps_the_sum_of_orthonormal_branches_at_length_one(count: int) -> None:
    stream = residuals.build("scaled", hidden_size=count, num_sublayers=count)
    total = run(stream, torch.zeros(count), list(torch.eye(count)))
    torch.testing.assert_close(total.norm(), torch.tensor(1.0))
    torch.testing.assert_close(total, torch.full((count,), count**-0.5))


@pytest.mark.parametrize("count", [1, 4, 24])
def test_inverse_depth_is_the_mean_of_the_branches(count: int) -> None:
    stream = residuals.build("scaled", {"branch": "inverse-depth"}, hidden_size=3, num_sublayers=count)
    branches = draw(count, 2, 3)
    torch.testing.assert_close(run(stream, torch.zeros(2, 3, dtype=torch.float64), list(branches)), branches.mean(0))


def test_learned_starts_at_the_constant_and_each_sublayer_has_its_own_gain() -> None:
    constant = ScaledResidual(3, 4)
    learned = residuals.build("scaled", {"learned": True}, hidden_size=3, num_sublayers=4).double()
    assert not list(constant.parameters())
    assert [gain.tolist() for gain in learned.parameters()] == [[0.5] * 3] * 4
    x, branches = draw(2, 3), draw(4, 2, 3, seed=1)
    y = run(learned, x, list(branches))
    torch.testing.assert_close(y, run(constant, x, list(branches)))
    towards = draw(2, 3, seed=2)
    y.backward(towards)
    for gain, branch in zip(learned.gains, branches, strict=True):
        torch.testing.assert_close(gain.grad, (towards * branch).sum(0))


def test_started_at_zero_the_network_is_the_identity_and_can_learn() -> None:
    stream = ScaledResidual(3, 2, branch=0, learned=True).double()
    x, branches = draw(2, 3), list(draw(2, 2, 3, seed=1))
    y = run(stream, x, branches)
    assert torch.equal(y, x)
    y.sum().backward()
    for gain in stream.gains:
        assert gain.grad.abs().min() > 0


def test_a_wrong_branch_weight_names_both_things_that_would_do() -> None:
    with pytest.raises(UserError) as caught:
        residuals.build("scaled", {"branch": "deep"}, hidden_size=3, num_sublayers=2)
    message = str(caught.value)
    assert message.startswith("residual 'scaled', option branch='deep': ")
    assert "valid number" in message
    assert "'depth'" in message
