"""Spectra of weights against numpy, with low rank, outliers and tails planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from assay.diagnostics import Result

Measure = Callable[..., Result]


def row(result: Result, name: str) -> dict[str, Any]:
    (found,) = [row for row in result.arrays["matrices"] if row["matrix"] == name]
    return dict(found)


def with_spectrum(matrix: torch.Tensor, singular: torch.Tensor) -> torch.Tensor:
    """A matrix of the same directions with other singular values."""
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return ((left * singular) @ right).float()


def test_is_numpy_on_singular_values(measure: Measure, released: Any) -> None:
    model = released("llama")
    result = measure("weight-spectra", model)
    matrices = {n: p.detach().numpy() for n, p in model.named_parameters() if "layers" in n and p.ndim == 2}
    assert [row["matrix"] for row in result.arrays["matrices"]] == list(matrices)
    for name, matrix in matrices.items():
        squares = np.linalg.svd(matrix.astype(float), compute_uv=False) ** 2
        needed = np.searchsorted(np.cumsum(squares), 0.9 * squares.sum()) + 1
        assert row(result, name)["stable_rank"] == pytest.approx(squares.sum() / squares[0], rel=1e-5)
        assert row(result, name)["low_rankness"] == pytest.approx(needed / len(squares))


def test_planted_rank_and_outliers(measure: Measure, released: Any) -> None:
    """One matrix of 4 equal singular values of 32; one of noise with two values far outside of it."""
    model = released("olmo2")
    low, noisy = model.model.layers[0].mlp.up_proj.weight, model.model.layers[1].self_attn.q_proj.weight
    with torch.no_grad():
        low.copy_(with_spectrum(low, torch.tensor([3.0] * 4 + [0.0] * 28)))
        left, right = torch.linalg.qr(torch.randn(32, 2)).Q, torch.linalg.qr(torch.randn(32, 2)).Q
        noisy += 30 * left @ right.T
    result = measure("weight-spectra", model)
    found = row(result, "model.layers.0.mlp.up_proj.weight")
    assert found["stable_rank"] == pytest.approx(4, rel=1e-4)
    assert found["low_rankness"] == 4 / 32
    assert row(result, "model.layers.1.self_attn.q_proj.weight")["outliers"] == 2


@pytest.mark.parametrize(("alpha", "symptom"), [(1.5, "overfitting"), (4.0, None), (12.0, "slow-convergence")])
def test_planted_tails(measure: Measure, released: Any, alpha: float, symptom: str | None) -> None:
    """Eigenvalues at the quantiles of a power law λ^-α from 1 on, in all matrices."""
    model = released("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            for parameter in (p for p in layer.parameters() if p.ndim == 2):
                size = min(parameter.shape)
                beyond = (torch.arange(size, dtype=torch.float64) + 0.5) / size
                parameter.copy_(with_spectrum(parameter, (beyond ** (-1 / (alpha - 1))).sqrt()))
    result = measure("weight-spectra", model)
    assert result.scalars["tail_exponent"] == pytest.approx(alpha, rel=0.15)
    assert [finding.symptom for finding in result.findings] == ([symptom] if symptom else [])
    if symptom:
        assert len(result.findings[0].where) == 28
