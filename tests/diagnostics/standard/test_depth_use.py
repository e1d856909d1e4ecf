"""What sublayers add to the stream, by hand, against hidden states, and with layers switched off."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from assay.diagnostics import Result, diagnostics
from assay.diagnostics.events import LayerStep
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows

Measure = Callable[..., Result]


def test_by_hand(llama: Subject) -> None:
    """h = (3, 4), a = (-3, -4) / 2, then h + a = (1.5, 2) and m = (2, -1.5)."""
    diagnostic = diagnostics.build("depth-use", subject=llama)
    state = torch.tensor([[[9.0, 9.0], [3.0, 4.0]]])
    attention = torch.tensor([[[9.0, 0.0], [-1.5, -2.0]]])
    mlp = torch.tensor([[[0.0, 9.0], [2.0, -1.5]]])
    diagnostic.on_layer(LayerStep(0, state, state + attention + mlp, attention, mlp))
    result = diagnostic.result()
    assert result is not None
    update = torch.tensor([0.5, -3.5])
    cosine = (update @ torch.tensor([3.0, 4.0]) / update.norm() / 5).item()
    expected = {
        "layer_contribution": update.norm().item() / 5,
        "layer_cosine": cosine,
        "attention_contribution": 0.5,
        "attention_cosine": -1,
        "mlp_contribution": 1,
        "mlp_cosine": 0,
    }
    assert {name: values[0] for name, values in result.arrays.items()} == pytest.approx(expected, abs=1e-6)
    assert result.scalars["late_over_early"] == pytest.approx(1)


def test_is_arithmetic_on_hidden_states(measure: Measure, released: Any, windows: Windows) -> None:
    model = released("gemma2")
    with torch.no_grad():
        states = model(windows.ids, output_hidden_states=True).hidden_states[:-1]
    streams = [state[:, 1:].double().numpy() for state in states]
    shares, cosines = [], []
    for before, after in itertools.pairwise(streams):
        update = after - before
        norms = np.linalg.norm(before, axis=-1), np.linalg.norm(update, axis=-1)
        shares.append((norms[1] / norms[0]).mean())
        cosines.append(((update * before).sum(-1) / norms[0] / norms[1]).mean())
    result = measure("depth-use", model)
    assert result.arrays["layer_contribution"][:-1] == pytest.approx(shares, rel=1e-4)
    assert result.arrays["layer_cosine"][:-1] == pytest.approx(cosines, abs=1e-4)


def test_layers_that_write_nothing_are_idle(measure: Measure, released: Any) -> None:
    model = released("llama")
    with torch.no_grad():
        for layer in model.model.layers[2:]:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
    result = measure("depth-use", model)
    (finding,) = result.findings
    assert finding.symptom == "idle-depth"
    assert [place["layer"] for place in finding.where] == [2, 3]
    assert finding.excess == 2
    assert result.scalars["idle_layers"] == 0.5
    assert result.scalars["late_over_early"] == 0
    assert not measure("depth-use", released("llama")).findings
