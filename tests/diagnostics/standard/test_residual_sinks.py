"""Features that are large on all tokens, by hand, against hidden states, and with one planted."""

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


def test_the_largest_score_that_there_is(llama: Subject) -> None:
    """A state with one feature of 32 has the score √32 there, whatever its size; the first token is left out."""
    diagnostic = diagnostics.build("residual-sinks", subject=llama)
    after = torch.zeros(2, 3, 32)
    after[:, 1:, 5] = torch.tensor([[2.0, -30.0], [0.1, 7.0]])
    after[:, 0, 9] = 1000
    diagnostic.on_layer(LayerStep(0, after, after, None, None))
    result = diagnostic.result()
    assert result is not None
    assert result.arrays["strongest"] == pytest.approx([32**0.5])
    assert not result.findings  # 5.66 of 6: no stream of 32 features has more


def test_is_arithmetic_on_hidden_states(measure: Measure, released: Any, windows: Windows) -> None:
    model = released("gpt_neox")
    with torch.no_grad():
        states = model(windows.ids, output_hidden_states=True).hidden_states[1:-1]
    expected = []
    for state in states:
        tokens = state[:, 1:].double().numpy()
        expected.append((np.abs(tokens) / np.sqrt((tokens**2).mean(-1, keepdims=True))).mean((0, 1)).max())
    assert measure("residual-sinks", model).arrays["strongest"][:-1] == pytest.approx(expected, rel=1e-5)


def test_a_planted_feature_is_found(measure: Measure, wide: Any) -> None:
    model = wide()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 17] = 300
    (finding,) = measure("residual-sinks", model).findings
    assert finding.symptom == "activation-outliers"
    assert {place["dimension"] for place in finding.where} == {17}
    assert {place["layer"] for place in finding.where} == {0, 1}
    assert 6 < finding.value <= 8
    assert not measure("residual-sinks", wide()).findings


@pytest.fixture
def wide() -> Callable[[], Any]:
    """A model of 64 features, where the strongest sink has the score 8."""
    import transformers

    def make() -> Any:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        )
        return transformers.LlamaForCausalLM(config).eval()

    return make
