"""The output's figures by hand, against scipy, and with logits that drifted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp
from scipy.stats import entropy

from assay.diagnostics import Result, diagnostics
from assay.diagnostics.events import Output
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows

Measure = Callable[..., Result]


def test_by_hand(llama: Subject) -> None:
    """Two places: probabilities ¾ and ¼ with the first right, then ½ and ½ with the second right."""
    diagnostic = diagnostics.build("output-logits", subject=llama)
    logits = torch.tensor([[[math.log(3), 0.0], [2.0, 2.0], [9.0, -9.0]]])
    diagnostic.on_output(Output(logits, torch.tensor([[0, 0, 1]])))
    result = diagnostic.result()
    assert result is not None
    best = int(torch.tensor([2.0, 2.0]).argmax() == 1)
    expected = {
        "loss": (math.log(4 / 3) + math.log(2)) / 2,
        "entropy": (math.log(4) - 0.75 * math.log(3) + math.log(2)) / 2,
        "confidence": (3 / 4 + 1 / 2) / 2,
        "accuracy": (1 + best) / 2,
        "log_normalizer": (math.log(4) + 2 + math.log(2)) / 2,
        "logit_rms": math.log(3) / 4,
        "overconfidence": 5 / 8 - (1 + best) / 2,
    }
    assert result.scalars == pytest.approx(expected, abs=1e-6)


def test_is_what_scipy_makes_of_the_logits(measure: Measure, released: Any, windows: Windows) -> None:
    model = released("gemma2")
    with torch.no_grad():
        logits = model(windows.ids).logits[:, :-1].double().numpy()
    targets = windows.ids[:, 1:].numpy()
    logs = log_softmax(logits, axis=-1)
    confidence, accuracy = np.exp(logs).max(-1).mean(), (logits.argmax(-1) == targets).mean()
    expected = {
        "loss": -np.take_along_axis(logs, targets[..., None], -1).mean(),
        "entropy": entropy(np.exp(logs), axis=-1).mean(),
        "confidence": confidence,
        "accuracy": accuracy,
        "log_normalizer": logsumexp(logits, axis=-1).mean(),
        "logit_rms": logits.std(-1).mean(),
        "overconfidence": confidence - accuracy,
    }
    assert measure("output-logits", model).scalars == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shift", [150.0, -150.0])
def test_a_drift_that_changes_no_probability_is_found(measure: Measure, released: Any, shift: float) -> None:
    model, healthy = (released("llama") for _ in range(2))
    for one in (model, healthy):
        with torch.no_grad():
            one.lm_head.weight *= 0.1
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + shift)
    drifted, plain = measure("output-logits", model), measure("output-logits", healthy)
    (finding,) = drifted.findings
    assert finding.symptom == "logit-growth"
    assert finding.value == pytest.approx(abs(plain.scalars["log_normalizer"] + shift), rel=1e-5)
    assert drifted.scalars["loss"] == pytest.approx(plain.scalars["loss"], abs=1e-3)
    assert not plain.findings


def test_a_head_that_is_too_sure_is_found(measure: Measure, released: Any) -> None:
    model = released("llama")
    with torch.no_grad():
        model.lm_head.weight *= 5
    (finding,) = measure("output-logits", model).findings
    assert finding.symptom == "miscalibration"
    assert finding.value > 0.5
