"""Tokenwise parts of updates: layers that treat tokens alone, and layers that mix them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from assay.diagnostics import Result, diagnostics
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows
from assay.errors import UserError

Measure = Callable[..., Result]


def replaced(model: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """All layers compute ``function`` of their input instead."""
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: function(inputs[0]))
    return model


def test_a_diagonal_map_is_all_tokenwise(measure: Measure, released: Any) -> None:
    scale = 1 + torch.rand(32, generator=torch.Generator().manual_seed(0))
    result = measure("layer-updates", replaced(released("llama"), lambda x: scale * x))
    assert result.arrays["tokenwise"] == pytest.approx([1] * 4, abs=1e-4)
    assert result.arrays["state"] == pytest.approx([1] * 4, abs=1e-4)


def test_a_map_of_other_tokens_is_all_residual(measure: Measure, released: Any) -> None:
    """Each token gets a hundred times its predecessor's state."""
    result = measure("layer-updates", replaced(released("llama"), lambda x: x + 100 * x.roll(1, 1)))
    assert result.scalars["residual"] > 0.9 > 0.5 > abs(result.scalars["tokenwise"])


def test_is_numpy_on_hidden_states(measure: Measure, released: Any, windows: Windows) -> None:
    """A diagonal least-squares fit to the 32 nearest of the other tokens, drawn to the identity by λ."""
    model = released("opt")
    with torch.no_grad():
        states = model(windows.ids[:1], output_hidden_states=True).hidden_states[:-1]
    streams = [state[0, 1:].double().numpy() for state in states]
    expected = []
    for x, y in itertools.pairwise(streams):
        u, cosines = y - x, []
        for token in range(len(x)):
            distances = ((x - x[token]) ** 2).sum(-1)
            near = [other for other in np.argsort(distances) if other != token][:32]
            squares = (x[near] ** 2).sum(0)
            t = (u[near] * x[near]).sum(0) / (squares + 1e-3 * (x**2).sum(-1).mean()) * x[token]
            cosines.append(u[token] @ t / np.linalg.norm(u[token]) / np.linalg.norm(t))
        expected.append(np.mean(cosines))
    assert measure("layer-updates", model).arrays["tokenwise"][:-1] == pytest.approx(expected, abs=1e-3)


def test_windows_that_are_too_short(llama: Subject, windows: Windows) -> None:
    diagnostic = diagnostics.build("layer-updates", subject=llama)
    with pytest.raises(UserError, match="windows of 33 tokens are too short; a map of each token needs 34"):
        diagnostic.work(Windows(windows.ids[:, :33], windows.domains))
    diagnostic.work(Windows(windows.ids[:, :34], windows.domains))
    assert diagnostic.result() is not None
