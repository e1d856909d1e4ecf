from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from assay.claims.experiments import experiments
from assay.claims.experiments.self_tuning_networks import Classifier, evaluated, penalised, shuffled


def test_the_loss_has_the_decay_of_each_example_in_training_alone() -> None:
    torch.manual_seed(0)
    model, h = Classifier(8), torch.randn(6, 2)
    images, labels = torch.randn(6, 64), torch.arange(6)
    decays = torch.rand(6)
    plain = F.cross_entropy(model(images, h, {}), labels)
    assert torch.equal(penalised(model, (images, labels), h, {}), plain)
    norms = []
    for row in h:
        gates = [layer.gates.weight[: len(layer.weight)] @ row for layer in (model.hidden, model.head)]
        layers = zip((model.hidden, model.head), gates, strict=True)
        norms.append(
            sum((layer.weight + gate[:, None] * layer.response_weight).square().sum() for layer, gate in layers)
        )
    expected = plain + 0.5 * (decays * torch.stack(norms)).mean()
    rates = {"dropout": torch.zeros(6), "weight_decay": decays}
    torch.testing.assert_close(penalised(model, (images, labels), h, rates), expected)
    loss, accuracy = evaluated(model, (images, labels), torch.zeros(1, 2))
    assert loss == pytest.approx(F.cross_entropy(model(images, torch.zeros(6, 2), {}), labels).item())
    assert accuracy in [n / 6 for n in range(7)]


def test_batches_pass_over_all_images() -> None:
    images, labels = torch.arange(10.0)[:, None], torch.arange(10)
    found = torch.cat([label for _, label in shuffled((images, labels), 5, 4, seed=0)])
    assert found.bincount().tolist() == [2] * 10
    assert all(len(label) == 4 for _, label in shuffled((images, labels), 5, 4, seed=0))


def test_a_short_run_is_reproducible() -> None:
    pytest.importorskip("sklearn")
    options = {"images": 40, "hidden_size": 8, "warmup": 2, "rounds": 3, "batch_size": 8}
    found, again = (experiments.build("self-tuning-digits", options, seed=0) for _ in range(2))
    assert found == again
    assert found["tuned.dropout"] != pytest.approx(0.05, abs=1e-6)
    assert {"tuned.loss", "best.loss", "median.accuracy", "tuned.weight_decay"} <= found.keys()
