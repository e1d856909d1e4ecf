"""The worked examples of the documentation's page, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"


def examples() -> list[dict[str, Any]]:
    """The names that each example of the section leaves behind."""
    section = PAGE.read_text(encoding="utf-8").partition("## Solvers and protocols")[2].partition("\n## ")[0]
    scopes = []
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        torch.manual_seed(0)
        scope: dict[str, Any] = {"torch": torch}
        exec(code, scope)
        scopes.append(scope)
    return scopes


def test_the_examples_do_what_they_say() -> None:
    logistic, halpern, federated, tuned = examples()
    assert (logistic["fast"].steps, logistic["slow"].steps) == (2, 308)
    assert (logistic["labels"] * logistic["model"](logistic["inputs"])[:, 0] > 0).all()
    assert halpern["fit"].converged
    torch.testing.assert_close(halpern["fit"].point, torch.arange(5.0).double(), atol=0.2, rtol=0)
    assert halpern["game"].converged
    torch.testing.assert_close(halpern["game"].point, torch.full((6,), 1 / 3).double(), atol=0.02, rtol=0)
    assert federated["losses"][-1] < 0.8 * federated["losses"][0]
    assert tuned["known"].current()["weight_decay"] > 0.01
