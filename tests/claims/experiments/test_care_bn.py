from __future__ import annotations

import pytest
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.care_bn import SpikingClassifier, _errors, _Fire, _Spikes
from assay.errors import UserError


def test_neurons_by_hand() -> None:
    """Voltages 0.4, 0.6 (fires), 0.3, 0.425, 0.51875 (fires), 0."""
    current = torch.tensor([0.4, 0.3, 0.3, 0.2, 0.2, 0.0])
    spikes = _Spikes()(current[None, :, None])[0, :, 0]
    assert spikes.tolist() == [0, 1, 0, 0, 1, 0]


def test_the_surrogate_is_a_rectangle_around_the_threshold() -> None:
    voltage = torch.tensor([-0.1, 0.01, 0.5, 0.99, 1.1], requires_grad=True)
    _Fire.apply(voltage).backward(torch.full((5,), 2.0))
    assert voltage.grad.tolist() == [0, 2, 2, 2, 0]


def test_errors_have_the_units_of_the_truth() -> None:
    mean, variance = _errors(torch.tensor([3.0]), torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([4.0]))
    assert (mean.item(), variance.item()) == (1.0, 0.25)


def test_the_average_beside_it_settles_to_the_error_that_theory_gives() -> None:
    """Of a fixed normal distribution: momentum / (2 − momentum) / N for the mean, twice that for the variance."""
    found = experiments.build("care-bn-drift", {"steps": 300}, seed=0)
    expected = 0.1 / 1.9 / 256
    assert found["static.average_mean"] == pytest.approx(expected, rel=0.1)
    assert found["static.average_variance"] == pytest.approx(2 * expected, rel=0.1)


def test_the_whole_buffer_is_the_truth_and_a_replay_of_it_is_nearer_than_one_batch() -> None:
    pytest.importorskip("sklearn")
    options = {"steps": 20, "hidden_size": 8, "replayed": 10}
    found, again = (experiments.build("care-bn-online", options, seed=0) for _ in range(2))
    assert found == again
    assert found["recalibrated_mean"] < found["care_mean"]
    assert 0 < found["true_accuracy"] < 1


def test_the_average_of_a_few_steps_is_not_measured() -> None:
    with pytest.raises(UserError, match="experiment 'care-bn-online', option steps=5"):
        experiments.build("care-bn-online", {"steps": 5}, seed=0)


def test_images_reach_the_neurons_at_every_step() -> None:
    torch.manual_seed(0)
    model = SpikingClassifier(6).train()
    seen = []
    model.layers[0].register_forward_hook(lambda module, arguments, output: seen.append(arguments[0]))
    images = torch.randn(3, 8, 8)
    model(images)
    assert seen[0].shape == (3, 5, 64)
    assert all(torch.equal(seen[0][:, step], images.flatten(1)) for step in range(5))
