"""Gradients by layer against autograd, and with a layer that gets none."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from assay.diagnostics import Result
from assay.diagnostics.windows import Windows

Measure = Callable[..., Result]


def test_is_autograd_on_the_whole_text(measure: Measure, released: Any, windows: Windows) -> None:
    model = released("gpt2")
    logits = model(windows.ids).logits[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), windows.ids[:, 1:].flatten()).backward()
    norms, nuclear, ranks = [], [], []
    for block in model.transformer.h:
        gradients = [parameter.grad.double().numpy() for parameter in block.parameters()]
        norms.append(np.sqrt(sum((gradient**2).sum() for gradient in gradients)))
        for matrix in (gradient for gradient in gradients if gradient.ndim == 2):
            singular = np.linalg.svd(matrix, compute_uv=False)
            shares = singular / singular.sum()
            nuclear.append(singular.sum())
            ranks.append(np.exp(-(shares * np.log(shares + 1e-300)).sum()))
    model.zero_grad()
    result = measure("gradients", model)
    assert result.arrays["norm"] == pytest.approx(norms, rel=1e-3)
    assert result.scalars["norm"] == pytest.approx(np.linalg.norm(norms), rel=1e-3)
    assert result.scalars["imbalance"] == pytest.approx(max(norms) / min(norms), rel=1e-3)
    assert [row["nuclear_norm"] for row in result.arrays["matrices"]] == pytest.approx(nuclear, rel=1e-3)
    assert [row["effective_rank"] for row in result.arrays["matrices"]] == pytest.approx(ranks, rel=1e-2)
    assert result.scalars["nuclear_norm"] == pytest.approx(statistics.median(nuclear), rel=1e-3)
    assert not result.findings


def test_the_model_is_left_as_it_was(measure: Measure, released: Any) -> None:
    model = released("llama")
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    measure("gradients", model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["lm_head.weight"]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_layer_that_gets_no_gradient_is_found(measure: Measure, released: Any) -> None:
    """Where all maps of a layer are zero, each keeps the others from learning."""
    model = released("llama")
    with torch.no_grad():
        for parameter in model.model.layers[2].parameters():
            parameter.zero_()
    (finding,) = measure("gradients", model).findings
    assert finding.symptom == "gradient-imbalance"
    assert finding.where[-1] == {"layer": 2, "norm": 0.0}
    assert len(finding.where) == 4
