"""The largest logit and the entropy of attention, by hand, against transformers, and where they run away."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from assay.diagnostics import Result, diagnostics
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows

Measure = Callable[..., Result]


def test_maxima_and_means_by_hand(llama: Subject, attention: Any) -> None:
    """Entropies of ln 2, ln 3 and ln 4 at the second to fourth query are all that there can be."""
    diagnostic = diagnostics.build("attention-logits", subject=llama)
    whole = torch.tensor([0.0, math.log(2), math.log(3), math.log(4)])
    diagnostic.on_attention(attention(0, largest_logit=[3.0, 120.0], entropy=torch.stack([whole, whole / 2])))
    diagnostic.on_attention(attention(0, largest_logit=[5.0, 110.0], entropy=torch.stack([whole, 0 * whole])))
    diagnostic.on_attention(attention(1, largest_logit=[1.0, 2.0], entropy=torch.stack([whole, whole])))
    result = diagnostic.result()
    assert result is not None
    assert result.arrays["largest_logit"] == [[5.0, 120.0], [1.0, 2.0]]
    np.testing.assert_allclose(result.arrays["entropy"], [[1.0, 0.25], [1.0, 1.0]], rtol=1e-6)
    assert result.scalars == pytest.approx({"largest_logit": 120, "entropy": 0.8125, "lowest_entropy": 0.625})
    (finding,) = result.findings
    assert finding.excess == pytest.approx(1.2)
    assert finding.where == ({"layer": 0, "head": 1, "logit": 120.0},)


def test_is_arithmetic_on_queries_and_keys(measure: Measure, released: Any, windows: Windows) -> None:
    """Of the first layer of GPT-2, whose queries and keys are plain products, and weights of transformers' own."""
    model = released("gpt2")
    model.set_attn_implementation("eager")
    block = model.transformer.h[0]
    with torch.no_grad():
        output = model(windows.ids, output_hidden_states=True, output_attentions=True)
        query, key, _ = block.attn.c_attn(block.ln_1(output.hidden_states[0])).split(32, dim=-1)
    query, key = (x.unflatten(-1, (4, 8)).numpy() for x in (query, key))
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(8)
    seen = np.tril(np.ones((40, 40), bool))
    result = measure("attention-logits", model)
    np.testing.assert_allclose(
        result.arrays["largest_logit"][0], np.where(seen, logits, -np.inf).max((0, 2, 3)), rtol=1e-4
    )
    for layer, weights in enumerate(output.attentions):
        entropy = torch.special.entr(weights.double()).sum(-1)[..., 1:]
        shares = entropy / torch.arange(2, 41).log()
        np.testing.assert_allclose(result.arrays["entropy"][layer], shares.mean((0, 2)), rtol=1e-3)


def test_queries_that_grew_are_found_where_they_are(measure: Measure, released: Any) -> None:
    model = released("llama")
    with torch.no_grad():
        model.model.layers[2].self_attn.q_proj.weight[8:16] *= 50
    finding = measure("attention-logits", model).findings[0]
    assert finding.symptom == "logit-growth"
    assert finding.value > 100
    assert [(place["layer"], place["head"]) for place in finding.where] == [(2, 1)]
    assert not measure("attention-logits", released("llama")).findings


def test_entropy_that_collapsed_is_found(measure: Measure, released: Any) -> None:
    model = released("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight *= 1000
    found = measure("attention-logits", model).findings
    assert [finding.symptom for finding in found] == ["logit-growth", "logit-growth"]
    assert [place["layer"] for place in found[1].where] == [1]
    assert found[1].value < 0.05
