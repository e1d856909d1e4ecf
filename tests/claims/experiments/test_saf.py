from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.claims.experiments import experiments
from assay.claims.experiments.saf import ARMS, Penalised, sharpness_aware_gradients, with_noise


def test_that_share_of_the_labels_is_wrong() -> None:
    labels = torch.arange(1000) % 10
    noisy = with_noise(labels, 0.2, seed=0)
    assert (noisy != labels).sum() == 200
    assert noisy.unique().tolist() == list(range(10))


def test_sams_gradient_is_that_of_the_moved_weights() -> None:
    model = nn.Linear(3, 4)
    x, y = torch.randn(5, 3), torch.arange(5) % 4
    start = [p.detach().clone() for p in model.parameters()]
    sharpness_aware_gradients(model, lambda: F.cross_entropy(model(x), y), 0.1)
    for p, origin in zip(model.parameters(), start, strict=True):
        torch.testing.assert_close(p.detach(), origin)
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    slopes = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    size = sum(slope.square().sum() for slope in slopes) ** 0.5
    moved = [(p + 0.1 * slope / size).detach().requires_grad_() for p, slope in zip(start, slopes, strict=True)]
    expected = torch.autograd.grad(F.cross_entropy(F.linear(x, *moved), y), moved)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_penalties_begin_together_and_differ() -> None:
    torch.manual_seed(0)
    model, labels, images = nn.Linear(3, 10), torch.arange(6), torch.randn(6, 3)
    penalised = {
        arm: Penalised(arm, model, labels, start=1, gap=1, epochs=4) for arm in ("sgd", "saf", "mesa", "uniform")
    }
    losses: list[dict[str, float]] = []
    for epoch in range(4):
        for each in penalised.values():
            each.begin_step(epoch, epoch / 4)
        losses.append({arm: each(images, labels, epoch).item() for arm, each in penalised.items()})
        with torch.no_grad():
            model.weight.add_(torch.randn(10, 3))
    for epoch, found in enumerate(losses):
        assert len({round(loss, 5) for loss in found.values()}) == (1 if epoch <= 1 else 4)


def test_a_short_run_is_reproducible() -> None:
    pytest.importorskip("sklearn")
    options = {"epochs": 2, "batch_size": 512, "hidden_size": 8, "lanczos": 4, "start": 0, "gap": 1}
    found, again = (experiments.build("saf-digits", options, seed=0) for _ in range(2))
    assert found == again
    assert found.keys() == {f"{arm}.{name}" for arm in ARMS for name in ("accuracy", "eigenvalue")}
