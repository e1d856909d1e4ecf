from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assay.claims.experiments import adamp, experiments


def test_the_rows_that_count_are_those_whose_length_the_loss_does_not_see() -> None:
    torch.manual_seed(0)
    model = adamp.classifier(hidden_size=6, depth=2)
    x, y = torch.randn(20, 8, 8), torch.arange(20) % 10
    loss = F.cross_entropy(model(x), y)
    assert len(adamp.row_norms(model)) == 12
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear) and layer.bias is None:
                layer.weight.mul_(torch.rand(6, 1) + 1)
    torch.testing.assert_close(F.cross_entropy(model(x), y), loss, rtol=1e-3, atol=1e-3)


def test_what_is_left_is_the_square_of_the_shrinkage(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer that doubles all weights leaves a quarter of the effective step."""
    pytest.importorskip("sklearn")

    class Double(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data *= 2

    monkeypatch.setattr(adamp, "ARMS", {"double": (Double, "sgd_lr")})
    found = experiments.build("effective-step", {"steps": 1, "hidden_size": 5, "depth": 1}, seed=0)
    assert found["double.left"] == pytest.approx(0.25)


def test_arms_start_alike_and_the_experiment_repeats() -> None:
    pytest.importorskip("sklearn")
    options = {"steps": 3, "batch_size": 16, "hidden_size": 8, "depth": 1}
    found, again = (experiments.build("effective-step", options, seed=1) for _ in range(2))
    assert found == again
    assert found.keys() == {f"{arm}.{name}" for arm in adamp.ARMS for name in ("left", "accuracy")}
    assert len({value for name, value in found.items() if name.endswith("left")}) == len(adamp.ARMS)
    still = experiments.build("effective-step", {**options, "sgd_lr": 0.0, "adam_lr": 0.0}, seed=1)
    assert [still[f"{arm}.left"] for arm in adamp.ARMS] == pytest.approx([1.0] * len(adamp.ARMS))
