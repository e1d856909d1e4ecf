"""The size of the stream, by hand, against hidden states, and where it grows."""

from __future__ import annotations

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
    """States of 32 features: (1, -1, …) then (6, 2, …), after a first token ten times as large."""
    diagnostic = diagnostics.build("residual-norms", subject=llama)
    one, two = torch.tensor([1.0, -1.0]).repeat(16), torch.tensor([6.0, 2.0]).repeat(16)
    for layer, state in enumerate((one, two)):
        after = torch.stack([10 * state, state, -state])[None]
        diagnostic.on_layer(LayerStep(layer, 0 * after, after, None, None))
    result = diagnostic.result()
    assert result is not None
    assert result.arrays["rms"] == pytest.approx([1, 20**0.5])
    assert result.arrays["variance"] == pytest.approx([1, 4])
    assert result.arrays["peak"] == pytest.approx([10, 10])
    assert result.scalars == pytest.approx({"growth": 20**0.5, "rms": 20**0.5, "variance": 4, "peak": 10})
    assert not result.findings


def test_is_arithmetic_on_hidden_states(measure: Measure, released: Any, windows: Windows) -> None:
    model = released("opt")
    with torch.no_grad():
        states = [s.double().numpy() for s in model(windows.ids, output_hidden_states=True).hidden_states[1:-1]]
    result = measure("residual-norms", model)
    rms = [np.sqrt((s[:, 1:] ** 2).mean(-1)).mean() for s in states]
    norms = [np.linalg.norm(s, axis=-1) for s in states]
    assert result.arrays["rms"][:-1] == pytest.approx(rms, rel=1e-5)
    assert result.arrays["variance"][:-1] == pytest.approx([s[:, 1:].var(-1).mean() for s in states], rel=1e-5)
    assert result.arrays["peak"][:-1] == pytest.approx([n[:, 0].mean() / n[:, 1:].mean() for n in norms], rel=1e-5)


def test_growth_is_found(measure: Measure, released: Any) -> None:
    """A small embedding, and branches that write ever more."""
    model = released("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight *= 0.01
        for index, layer in enumerate(model.model.layers):
            layer.mlp.down_proj.weight *= 4.0**index
            layer.self_attn.o_proj.weight *= 4.0**index
    result = measure("residual-norms", model)
    (finding,) = result.findings
    assert finding.symptom == "residual-growth"
    assert finding.threshold == 8  # 4 √4
    assert finding.value == pytest.approx(result.arrays["rms"][-1] / result.arrays["rms"][0])
    assert finding.where[0]["layer"] == 3
    assert not measure("residual-norms", released("llama")).findings
