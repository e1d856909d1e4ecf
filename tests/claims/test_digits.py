from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from assay.claims.digits import accuracy, batches, digits, train_classifier
from assay.errors import UserError

pytest.importorskip("sklearn")


def test_every_image_is_in_one_part_and_pixels_are_standardised() -> None:
    from sklearn.datasets import load_digits

    train, train_labels, test, test_labels = digits(3)
    every = torch.cat([train, test])
    assert train.dtype == torch.float32
    assert train.shape == (1347, 8, 8)
    assert test.shape == (450, 8, 8)
    torch.testing.assert_close(every.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(every.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)
    pixels = torch.from_numpy(load_digits().images)
    undone = (every * pixels.std(correction=0) + pixels.mean()).round().flatten(1)
    assert sorted(map(tuple, undone.tolist())) == sorted(map(tuple, pixels.flatten(1).tolist()))
    shares = [labels.bincount(minlength=10) / len(labels) for labels in (train_labels, test_labels)]
    torch.testing.assert_close(*shares, atol=2e-3, rtol=0)


def test_the_seed_decides_the_split() -> None:
    first, again, other = digits(0), digits(0), digits(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_batches_pass_over_everything_before_anything_comes_twice() -> None:
    drawn = list(batches(10, steps=5, batch_size=4, seed=1))
    assert [len(index) for index in drawn] == [4] * 5
    flat = torch.cat(drawn)
    assert sorted(flat[:10].tolist()) == sorted(flat[10:].tolist()) == list(range(10))
    assert not torch.equal(flat[:10], flat[10:])


def test_a_linear_classifier_learns_and_is_reproducible() -> None:
    images, labels, test_images, test_labels = digits(0)
    found = []
    for _ in range(2):
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
        train_classifier(module, images, labels, steps=150, batch_size=64, lr=1e-2, seed=0)
        found.append((accuracy(module, test_images, test_labels), module[1].weight.detach()))
    assert found[0][0] > 0.9
    assert torch.equal(found[0][1], found[1][1])


def test_weight_decay_spares_vectors() -> None:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.bias.fill_(1.0)
    images, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    train_classifier(module, images, labels, steps=1, batch_size=2, lr=0.1, seed=0, weight_decay=0.5)
    torch.testing.assert_close(module.weight, torch.full((2, 2), 0.95))
    torch.testing.assert_close(module.bias, torch.ones(2))


def test_without_scikit_learn_one_line_says_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"needs scikit-learn: pip install 'assay\[claims\]'"):
        digits(0)
