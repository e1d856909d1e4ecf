from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.nn.scale_vector import ScaleVector


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_gain(form: str) -> ScaleVector:
    gain = ScaleVector(4, form).double()
    for seed, parameter in enumerate(gain.parameters(), start=1):
        parameter.data.copy_(draw(*parameter.shape, seed=seed))
    return gain


@pytest.mark.parametrize("form", ["vector", "scalar*vector", "vector*vector"])
def test_starts_at_one_with_the_gradients_of_the_plain_gain(form: str) -> None:
    gain, towards = ScaleVector(4, form).double(), draw(4)
    assert torch.equal(gain(), torch.ones(4, dtype=torch.float64))
    (gain() * towards).sum().backward()
    torch.testing.assert_close(gain.weight.grad, towards)


def test_gradients_of_magnitude_and_direction() -> None:
    towards = draw(4)
    scalar, vector = random_gain("scalar*vector"), random_gain("vector*vector")
    for gain in (scalar, vector):
        (gain() * towards).sum().backward()
        torch.testing.assert_close(gain.weight.grad, gain.magnitude.detach() * towards)
    torch.testing.assert_close(scalar.magnitude.grad, (scalar.weight.detach() @ towards)[None])
    torch.testing.assert_close(vector.magnitude.grad, vector.weight.detach() * towards)


@pytest.mark.parametrize("form", ["vector", "scalar*vector", "vector*vector"])
def test_a_small_step_moves_the_gain_along_its_preconditioner(form: str) -> None:
    gain, towards, lr = random_gain(form), draw(4), 1e-7
    before, alpha = gain().detach().clone(), gain.weight.detach().clone()
    preconditioner = torch.eye(4, dtype=torch.float64)
    if gain.magnitude is not None:
        beta = gain.magnitude.detach().clone()
        preconditioner = (
            beta**2 * preconditioner + torch.outer(alpha, alpha)
            if form == "scalar*vector"
            else torch.diag(alpha**2 + beta**2)
        )
    (gain() * towards).sum().backward()
    torch.optim.SGD(gain.parameters(), lr=lr).step()
    torch.testing.assert_close((gain().detach() - before) / lr, -preconditioner @ towards, rtol=1e-5, atol=1e-5)


def test_decay_reaches_all_factors_or_none() -> None:
    for form in ("vector", "scalar*vector", "vector*vector"):
        names = {name for name, _ in ScaleVector(4, form).named_parameters()}
        assert names <= ScaleVector(4, form, decay=True).weight_decay_parameters
        assert not ScaleVector(4, form).weight_decay_parameters
