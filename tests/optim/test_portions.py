"""Portions of a group: all parameters once, in their order, and the same step as with the whole group."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from assay.optim import optimizers, portions
from assay.optim.portions import portions as portions_of


@pytest.mark.parametrize(
    ("bytes_", "sizes"), [(1, [1, 1, 1, 1]), (24, [2, 1, 1]), (40, [2, 2]), (1000, [4]), (12, [1, 1, 1, 1])]
)
def test_they_hold_as_many_as_fit_and_one_at_least(
    bytes_: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portions, "PORTION", bytes_)
    parameters = [torch.zeros(3), torch.zeros(3), torch.zeros(7), torch.zeros(3)]
    found = [parameters[some] for some in portions_of(parameters)]
    assert [len(portion) for portion in found] == sizes
    assert all(a is b for a, b in zip(chain.from_iterable(found), parameters, strict=True))


def test_there_are_none_of_nothing_and_one_off_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "PORTION", 1)
    assert list(portions_of([])) == []
    assert list(portions_of([torch.zeros(5, device="meta")] * 3)) == [slice(0, 3)]


@pytest.mark.parametrize("name", ["muon", "exponentiated-gradient"])
def test_a_step_in_portions_is_the_step_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(bytes_: int) -> list[Tensor]:
        monkeypatch.setattr(portions, "PORTION", bytes_)
        generator = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(6, 4, generator=generator)) for _ in range(5)]
        optimizer = optimizers.build(name, params=weights, lr=0.1)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(6, 4, generator=generator)
            optimizer.step()
        return [weight.detach() for weight in weights]

    for whole, cut in zip(trained(2**23), trained(200), strict=True):
        torch.testing.assert_close(
            cut, whole, rtol=1e-2 if name == "muon" else 1e-6, atol=1e-3 if name == "muon" else 1e-7
        )
