"""Attention sinks and value drains, by hand, against transformers, and with a sink planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from assay.diagnostics import Result, diagnostics
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows

Measure = Callable[..., Result]


def test_shares_by_hand(llama: Subject, attention: Any) -> None:
    """Head 0 gives the first token 0.8 and head 1 the second 0.5; keys of the second half are not looked at."""
    diagnostic = diagnostics.build("attention-sinks", subject=llama)
    received = [[0.8, 0.1, 0.1, 0.1], [0.2, 0.5, 0.1, 0.9]]
    norms = [[1.0, 4.0, 4.0, 4.0], [3.0, 1.0, 2.0, 3.0]]
    diagnostic.on_attention(attention(0, received=received, value_norm=norms))
    diagnostic.on_attention(attention(1, received=[[0.1] * 4, [0.2] * 4], value_norm=1.0))
    result = diagnostic.result()
    assert result is not None
    np.testing.assert_allclose(result.arrays["first_token"], [[0.8, 0.2], [0.1, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(result.arrays["value_drain"], [[0.25, 1.5], [1.0, 1.0]], rtol=1e-6)
    expected = {"first_token": 1.3 / 4, "sink_heads": 0.5, "value_drain": (0.875 + 1) / 2}
    assert result.scalars == pytest.approx(expected)
    (finding,) = result.findings
    assert finding.where == (
        {"layer": 0, "head": 0, "token": 0, "share": 0.8},
        {"layer": 0, "head": 1, "token": 1, "share": 0.5},
    )


def test_is_arithmetic_on_output_attentions(measure: Measure, released: Any, windows: Windows) -> None:
    model = released("olmo2")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(windows.ids, output_attentions=True).attentions
    expected = [layer[..., 0].double().mean((0, 2)).tolist() for layer in weights]  # all queries see the first key
    result = measure("attention-sinks", model)
    np.testing.assert_allclose(result.arrays["first_token"], expected, rtol=1e-4)
    assert result.scalars["first_token"] == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_planted_sink_is_found(measure: Measure, released: Any, windows: Windows) -> None:
    """Queries and keys become constants, but for one key at the first position that all queries point at."""
    model = released("gpt2")
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, :64] = 0
            block.attn.c_attn.bias[:64] = 3

    def point(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output[:, 1:, 32:64] = 0
        return output

    for block in model.transformer.h:
        block.attn.c_attn.register_forward_hook(point)
    result = measure("attention-sinks", model)
    (finding,) = result.findings
    assert finding.symptom == "attention-sink"
    assert result.scalars["sink_heads"] == 1
    assert len(finding.where) == 16
    assert all(place["token"] == 0 for place in finding.where)
    assert not measure("attention-sinks", released("gpt2")).findings
