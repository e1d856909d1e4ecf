"""Entries of the weights, counted by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from assay.diagnostics import Result

Measure = Callable[..., Result]


def test_zeros_and_small_entries_by_hand(measure: Measure, released: Any) -> None:
    """All ones, but for a matrix of 32 × 32: 256 zeros, and 8 entries of a thousandth."""
    model = released("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
        matrix = model.model.layers[1].self_attn.q_proj.weight
        matrix[:8] = 0
        matrix[8, :8] = 1e-3
    result = measure("weights", model)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert result.scalars == {"not_finite": 0, "sparsity": 256 / total, "near_zero": 264 / total}
    (row,) = [row for row in result.arrays["matrices"] if row["sparsity"]]
    assert row == {
        "matrix": "model.layers.1.self_attn.q_proj.weight",
        "sparsity": 0.25,
        "near_zero": 264 / 1024,
    }
    assert not result.findings


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_found_by_name(measure: Measure, released: Any, value: float) -> None:
    model = released("gpt2")
    with torch.no_grad():
        model.transformer.h[3].mlp.c_fc.weight[0, :2] = value
        model.transformer.ln_f.bias[5] = value
    result = measure("weights", model)
    (finding,) = result.findings
    assert (finding.symptom, finding.value, finding.excess) == ("divergence", 3, math.inf)
    assert finding.where == (
        {"matrix": "transformer.h.3.mlp.c_fc.weight", "entries": 2},
        {"matrix": "transformer.ln_f.bias", "entries": 1},
    )
    assert result.scalars["not_finite"] == 3
    assert all(math.isfinite(number) for number in result.scalars.values())
