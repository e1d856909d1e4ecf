"""Dead heads and heads that switch, by hand, against plain arithmetic, and with a head killed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from assay.diagnostics import Result, diagnostics
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows

Measure = Callable[..., Result]


def test_activity_by_hand(llama: Subject, attention: Any) -> None:
    """Head 0 writes ±(3, 4, 0): varying by 5. Head 1 writes the same (0, 0, 7) each time: by 0."""
    llama.layers = [dataclasses.replace(layer, attention=None) for layer in llama.layers]
    diagnostic = diagnostics.build("head-activity", subject=llama)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    output = torch.stack([signs * torch.tensor([3.0, 4.0, 0.0]), torch.tensor([0.0, 0.0, 7.0]).expand(4, 3)])
    diagnostic.on_attention(attention(0, output=output))
    result = diagnostic.result()
    assert result is not None
    assert result.arrays["activity"] == [[5.0, 0.0]]
    assert result.scalars == {"dead_heads": 0.5}


def test_switching_by_hand(llama: Subject, attention: Any) -> None:
    """Head 0 sinks on both domains, head 1 on prose only."""
    diagnostic = diagnostics.build("head-activity", subject=llama)
    output = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    for domain, shares in (("code", [0.5, 0.1]), ("prose", [0.6, 0.7])):
        event = attention(1, domain, received=torch.tensor(shares)[:, None])
        diagnostic.on_attention(dataclasses.replace(event, output=output[None]))
    result = diagnostic.result()
    assert result is not None
    assert result.scalars["switching_heads"] == 0.5
    assert result.arrays["switching"] == [{"layer": 1, "head": 1, "dormant": "prose", "active": "code"}]


def test_is_arithmetic_on_what_the_output_map_reads(measure: Measure, released: Any, windows: Windows) -> None:
    model = released("opt")
    read: list[np.ndarray] = []
    maps = [layer.self_attn.out_proj for layer in model.model.decoder.layers]
    for out in maps:
        out.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].double().numpy()))
    with torch.no_grad():
        model(windows.ids)
    expected = []
    for states, out in zip(read, maps, strict=True):
        deviations = states - states.mean((0, 1))
        weight = out.weight.detach().double().numpy()
        heads = [slice(8 * head, 8 * head + 8) for head in range(4)]
        spread = [np.sqrt((deviations[..., head] ** 2).sum(-1).mean()) for head in heads]
        norms = [np.linalg.norm(weight[:, head]) for head in heads]
        expected.append(np.multiply(spread, norms))
    found = measure("head-activity", released("opt"))
    np.testing.assert_allclose(found.arrays["activity"], expected, rtol=1e-4)


def test_a_head_without_values_is_dead(measure: Measure, released: Any) -> None:
    """OLMo 2 has a head of values for each head of queries."""
    model = released("olmo2")
    with torch.no_grad():
        model.model.layers[2].self_attn.v_proj.weight[8:16] = 0
    (finding,) = measure("head-activity", model).findings
    assert finding.symptom == "dead-head"
    assert finding.where == ({"layer": 2, "head": 1, "share": 0.0},)
    healthy = measure("head-activity", released("olmo2"))
    assert not healthy.findings
    assert healthy.scalars["dead_heads"] == 0


def test_a_head_that_is_not_read_is_dead(measure: Measure, released: Any) -> None:
    model = released("llama")
    with torch.no_grad():
        model.model.layers[3].self_attn.o_proj.weight[:, 24:] *= 1e-4
    (finding,) = measure("head-activity", model).findings
    assert [(place["layer"], place["head"]) for place in finding.where] == [(3, 3)]
    assert finding.excess == pytest.approx(0.01 / finding.where[0]["share"])
