from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from assay.nn.mlp import mlps
from assay.nn.mlp.normed_swiglu import NormedSwiGLU
from assay.nn.mlp.swiglu import SwiGLU


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(**options: object) -> NormedSwiGLU:
    mlp = NormedSwiGLU(4, 6, **options).double()
    for index, parameter in enumerate(mlp.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=10 + index))
    return mlp


def test_is_the_definition_feature_by_feature() -> None:
    mlp, x = make(eps=0.0), draw(4)
    gates = [sum(w * v for w, v in zip(row, x.tolist(), strict=True)) for row in mlp.gate.weight.tolist()]
    rms = math.sqrt(sum(z * z for z in gates) / 6)
    normed = [gain * z / rms for gain, z in zip(mlp.norm.weight.tolist(), gates, strict=True)]
    ups = [sum(w * v for w, v in zip(row, x.tolist(), strict=True)) for row in mlp.up.weight.tolist()]
    inner = [z / (1 + math.exp(-z)) * u for z, u in zip(normed, ups, strict=True)]
    expected = [sum(w * v for w, v in zip(row, inner, strict=True)) for row in mlp.down.weight.tolist()]
    assert mlp(x).tolist() == pytest.approx(expected)


def test_with_gains_that_undo_the_norm_it_is_swiglu() -> None:
    mlp, x = make(eps=0.0), draw(1, 4)
    plain = SwiGLU(4, 6).double()
    plain.load_state_dict({name: p for name, p in mlp.state_dict().items() if not name.startswith("norm")})
    mlp.norm.weight.data.fill_((mlp.gate(x).square().mean() ** 0.5).item())
    torch.testing.assert_close(mlp(x), plain(x))


def test_the_size_of_the_gates_matrix_does_not_matter_and_its_gradient_is_orthogonal() -> None:
    mlp, x = make(eps=0.0), draw(3, 4)
    y = mlp(x)
    y.square().sum().backward()
    assert mlp.gate.weight.grad is not None
    gradient = mlp.gate.weight.grad.clone()
    assert (gradient * mlp.gate.weight).sum().item() == pytest.approx(0, abs=1e-9 * gradient.norm().item())
    mlp.gate.weight.data *= 3
    mlp.zero_grad()
    again = mlp(x)
    again.square().sum().backward()
    torch.testing.assert_close(again, y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mlp.gate.weight.grad, gradient / 3, rtol=1e-9, atol=1e-12)


def test_options() -> None:
    names = {name for name, _ in mlps.build("normed-swiglu", hidden_size=4, intermediate_size=6).named_parameters()}
    assert names == {"gate.weight", "norm.weight", "up.weight", "down.weight"}
    bare = mlps.build("normed-swiglu", {"gain": False, "bias": True}, hidden_size=4, intermediate_size=6)
    names = {name for name, _ in bare.named_parameters()}
    assert names == {"gate.weight", "up.weight", "up.bias", "down.weight", "down.bias"}
