"""Massive activations, by hand, against hidden states, and with one planted at the first token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from assay.diagnostics import Result, diagnostics
from assay.diagnostics.events import LayerStep
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows

Measure = Callable[..., Result]


@pytest.mark.parametrize(
    ("value", "median", "massive"), [(1500.0, 1.0, True), (900.0, 1.0, False), (90.0, 0.01, False)]
)
def test_both_limits_count(llama: Subject, value: float, median: float, massive: bool) -> None:
    diagnostic = diagnostics.build("massive-activations", subject=llama)
    after = torch.full((2, 5, 32), median)
    after[1, 3, 8] = -value
    diagnostic.on_layer(LayerStep(0, after, after, None, None))
    result = diagnostic.result()
    assert result is not None
    assert result.scalars == pytest.approx(
        {"largest": value, "ratio": value / median, "massive_dimensions": float(massive)}
    )
    places = [place for finding in result.findings for place in finding.where]
    assert places == ([{"layer": 0, "dimension": 8, "token": 3, "value": value}] if massive else [])


def test_the_largest_of_all_batches_is_kept_with_its_token(llama: Subject) -> None:
    diagnostic = diagnostics.build("massive-activations", subject=llama)
    for token, value in ((2, 2000.0), (4, 5000.0), (1, 3000.0)):
        after = torch.ones(1, 6, 32)
        after[0, token, 3] = value
        diagnostic.on_layer(LayerStep(0, after, after, None, None))
    result = diagnostic.result()
    assert result is not None
    assert result.findings[0].where == ({"layer": 0, "dimension": 3, "token": 4, "value": 5000.0},)
    assert result.findings[0].excess == pytest.approx(5)


def test_is_arithmetic_on_hidden_states(measure: Measure, released: Any, windows: Windows) -> None:
    model = released("llama")
    with torch.no_grad():
        states = model(windows.ids, output_hidden_states=True).hidden_states[1:-1]
    result = measure("massive-activations", model)
    sizes = [state.abs() for state in states]
    assert result.arrays["largest"][:-1] == pytest.approx([size.max().item() for size in sizes], rel=1e-5)
    halves = [(size[:2].median() + size[2:].median()).item() / 2 for size in sizes]  # one batch is of one domain
    ratios = [size.max().item() / median for size, median in zip(sizes, halves, strict=True)]
    assert result.arrays["ratio"][:-1] == pytest.approx(ratios, rel=1e-4)


def test_a_planted_value_is_found(measure: Measure, released: Any) -> None:
    """As in trained models: from one layer on, at the first token."""

    def plant(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output[:, 0, 11] += 1e5
        return output

    model = released("llama")
    model.model.layers[1].mlp.register_forward_hook(plant)
    result = measure("massive-activations", model)
    (finding,) = result.findings
    assert finding.symptom == "massive-activation"
    assert {(place["layer"], place["dimension"], place["token"]) for place in finding.where} == {
        (layer, 11, 0) for layer in (1, 2, 3)
    }
    assert result.scalars["massive_dimensions"] == 1
    assert not measure("massive-activations", released("llama")).findings
