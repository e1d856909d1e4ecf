"""Voids against the definition, token by token."""

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


def used(subject: Subject, norms: list[float]) -> list[float]:
    """By layer, of a text of one token behind a first one, with these norms of its state."""
    states = [torch.tensor([[[50.0, 0.0], [norm, 0.0]]]) for norm in norms]
    diagnostic = diagnostics.build("voids", subject=subject)
    for layer, (before, after) in enumerate(itertools.pairwise(states)):
        diagnostic.on_layer(LayerStep(layer, before, after, None, None))
    result = diagnostic.result()
    assert result is not None
    return list(result.arrays["used"])


def test_changes_of_a_norm_by_hand(llama: Subject) -> None:
    """Changes 4, 1, -0.5, 3.5, 3, 0.5 against thresholds 0, 0, 2.4, 3.6, 3.6, 3.6."""
    assert used(llama, [1, 5, 6, 5.5, 9, 12, 12.5]) == [1, 1, 0, 0, 0, 0]


def test_a_norm_that_grows_evenly_has_no_void(llama: Subject) -> None:
    assert used(llama, [1, 2, 3, 4, 5]) == [1, 1, 1, 1]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_the_stream_does_not_matter(llama: Subject, scale: float) -> None:
    assert used(llama, [scale * norm for norm in (1, 5, 6, 5.5, 9, 12, 12.5)]) == [1, 1, 0, 0, 0, 0]


def test_is_arithmetic_on_the_hidden_states(measure: Measure, released: Any, windows: Windows) -> None:
    model = released("gpt2")
    with torch.no_grad():
        states = model(windows.ids, output_hidden_states=True).hidden_states
    norms = np.stack([state[:, 1:].double().norm(dim=-1).flatten() for state in states[:-1]])  # the last is normed
    changes = np.diff(norms, axis=0)
    expected = [1.0 * (changes[0] >= 0)]
    for layer in range(1, len(changes)):
        span = changes[:layer].max(0) - changes[:layer].min(0)
        expected.append(1.0 * (changes[layer] >= 0.8 * span))
    found = measure("voids", model).arrays["used"]
    assert found[:-1] == pytest.approx([share.mean() for share in expected])


def test_layers_that_shrink_the_stream_are_idle_depth(measure: Measure, released: Any) -> None:
    """Layers that give back a tenth of their input."""
    model = released("llama")
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: inputs[0] / 10)
    (finding,) = measure("voids", model).findings
    assert finding.symptom == "idle-depth"
    assert [place["layer"] for place in finding.where] == [0, 1, 2, 3]
    assert not measure("voids", released("llama")).findings
