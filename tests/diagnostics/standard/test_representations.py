"""How compressed states are, by hand, against numpy, and with all tokens made alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from assay.diagnostics import Result, diagnostics
from assay.diagnostics.events import LayerStep, Output
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows
from assay.measures.spectra import matrix_entropy, matrix_nuclear_norm

Measure = Callable[..., Result]


def test_the_rank_of_planted_states(llama: Subject) -> None:
    """Tokens at ± unit vectors of 3 directions, equally often: 3 of the 12 directions of 12 tokens."""
    diagnostic = diagnostics.build("representations", subject=llama)
    axes = torch.eye(32)[:3].repeat(2, 1)
    states = torch.cat((torch.full((1, 32), 99.0), axes, -axes))[None] + 5  # the mean does not count
    diagnostic.on_layer(LayerStep(0, states, states, None, None))
    result = diagnostic.result()
    assert result is not None
    assert result.scalars["effective_rank"] == pytest.approx(3 / 12, rel=1e-3)


def test_states_of_the_head_are_measured(llama: Subject) -> None:
    diagnostic = diagnostics.build("representations", subject=llama)
    states = torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(0))
    diagnostic.on_layer(LayerStep(0, states, states, None, None))
    diagnostic.on_output(Output(torch.zeros(3, 20, 5), torch.zeros(3, 20, dtype=torch.long), states))
    result = diagnostic.result()
    assert result is not None
    assert result.scalars["matrix_entropy"] == pytest.approx(matrix_entropy(states).mean().item())
    assert result.scalars["matrix_nuclear_norm"] == pytest.approx(matrix_nuclear_norm(states).mean().item())


def test_is_numpy_on_hidden_states(measure: Measure, released: Any, windows: Windows) -> None:
    model = released("opt")
    with torch.no_grad():
        states = [s.double().numpy() for s in model(windows.ids, output_hidden_states=True).hidden_states]
    ranks = []
    for state in states[1:-1]:
        singular = np.linalg.svd(state[0, 1:] - state[0, 1:].mean(0), compute_uv=False)
        shares = singular / singular.sum()
        ranks.append(np.exp(-(shares * np.log(shares)).sum()) / 32)
    entropies = []
    for text in states[-1]:
        rows = text - text.mean(0)
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        eigenvalues = np.linalg.eigvalsh(rows.T @ rows / len(rows))
        entropies.append(-(eigenvalues * np.log(eigenvalues)).sum() / np.log(32))
    result = measure("representations", model)
    assert result.arrays["effective_rank"][:-1] == pytest.approx(ranks, rel=1e-4)
    assert result.scalars["matrix_entropy"] == pytest.approx(np.mean(entropies), rel=1e-4)


def test_states_that_collapsed_are_found(llama: Subject) -> None:
    """97 tokens of 128 features, all over the place after one layer and along one line after the next."""
    torch.manual_seed(0)
    spread = torch.randn(1, 97, 128)
    line = (spread @ torch.randn(128, 1)) * torch.randn(128)
    diagnostic = diagnostics.build("representations", subject=llama)
    diagnostic.on_layer(LayerStep(0, spread, spread, None, None))
    healthy = diagnostic.result()
    assert healthy is not None
    assert not healthy.findings
    diagnostic.on_layer(LayerStep(1, spread, line, None, None))
    result = diagnostic.result()
    assert result is not None
    (finding,) = result.findings
    assert finding.symptom == "representation-collapse"
    assert finding.value == pytest.approx(1 / 96, rel=1e-3)
    assert [place["layer"] for place in finding.where] == [1]
