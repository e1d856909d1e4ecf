"""The penalty against torch's, its worked numbers, and which epoch's logits a step is compared with."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from assay.errors import UserError
from assay.losses.mesa import trajectory_penalty
from assay.losses.saf import SAF


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestPenalty:
    @pytest.mark.parametrize(
        ("temperature", "penalty", "slope"), [(5.0, 0.496702, 0.493377), (1.0, 0.433781, 0.380797), (100.0, 0.5, 0.5)]
    )
    def test_worked_numbers(self, temperature: float, penalty: float, slope: float) -> None:
        z = torch.tensor([[2.0, 0.0]], requires_grad=True)
        found = trajectory_penalty(z, torch.zeros(1, 2), temperature)
        found.sum().backward()
        assert found.item() == pytest.approx(penalty, rel=5e-3 if temperature == 100 else 1e-5)
        assert z.grad is not None
        assert z.grad[0].tolist() == pytest.approx([slope, -slope], rel=1e-3)

    @pytest.mark.parametrize("temperature", [1.0, 5.0])
    def test_against_torch(self, temperature: float) -> None:
        z, t = draw(6, 9).requires_grad_(), draw(6, 9, seed=1)
        q, p = (x / temperature for x in (z, t))
        other = F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean") * temperature**2
        torch.testing.assert_close(trajectory_penalty(z, t, temperature).mean(), other)

    @given(st.integers(0, 1000), st.floats(-50, 50), st.floats(0.5, 20))
    def test_is_a_divergence_of_distributions(self, seed: int, shift: float, temperature: float) -> None:
        z, t = draw(4, 5, seed=seed), draw(4, 5, seed=seed + 1)
        found = trajectory_penalty(z, t, temperature)
        assert (found >= -1e-5).all()
        torch.testing.assert_close(trajectory_penalty(z + shift, t - shift, temperature), found, rtol=1e-2, atol=1e-3)

    def test_no_gradient_where_nothing_changed(self) -> None:
        z = draw(4, 5).requires_grad_()
        found = trajectory_penalty(z, z.detach(), 5.0)
        found.sum().backward()
        assert found.abs().max() < 1e-6
        assert z.grad is not None
        assert z.grad.abs().max() < 1e-6


LABELS = torch.arange(6) % 4
EVERY = torch.arange(6)


def logits_of(epoch: int, classes: int = 4) -> Tensor:
    return draw(6, classes, seed=epoch)


def saf(**options: Any) -> SAF:
    return SAF(6, 4, **{"weight": 0.3, "start": 0, "gap": 2, "dtype": torch.float32, **options})


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_an_epoch_is_compared_with_the_one_gap_before(gap: int) -> None:
    loss = saf(gap=gap)
    for epoch in range(10):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(epoch))
        for index in order.split(4):
            z = logits_of(epoch)[index]
            expected = F.cross_entropy(z, LABELS[index])
            if epoch >= max(1, gap):
                earlier = logits_of(epoch - gap)[index]
                expected = expected + 0.3 * trajectory_penalty(z, earlier, 5.0).mean()
            torch.testing.assert_close(loss(z, LABELS[index], index, epoch), expected)


def test_the_penalty_begins_after_the_start() -> None:
    loss = saf(start=5)
    for epoch in range(8):
        z = logits_of(epoch)
        alone = F.cross_entropy(z, LABELS)
        assert torch.equal(loss(z, LABELS, EVERY, epoch), alone) == (epoch <= 5)


def test_without_weight_it_is_cross_entropy_bit_for_bit() -> None:
    loss = saf(weight=0.0, label_smoothing=0.1)
    for epoch in range(5):
        z = logits_of(epoch)
        assert torch.equal(loss(z, LABELS, EVERY, epoch), F.cross_entropy(z, LABELS, label_smoothing=0.1))


def test_what_an_epoch_left_out_has_no_penalty() -> None:
    loss = saf(gap=1)
    loss(logits_of(0)[:4], LABELS[:4], EVERY[:4], 0)
    z = logits_of(1)
    penalty = trajectory_penalty(z[:4], logits_of(0)[:4], 5.0).sum() / 6
    torch.testing.assert_close(loss(z, LABELS, EVERY, 1), F.cross_entropy(z, LABELS) + 0.3 * penalty)
    mixed = torch.full((6,), -1)
    assert torch.equal(loss(z, LABELS, mixed, 2), F.cross_entropy(z, LABELS))
    torch.testing.assert_close(loss.earlier(EVERY, 2)[0], z - z.amax(-1, keepdim=True))


def test_evaluation_neither_keeps_nor_penalises() -> None:
    loss = saf(gap=1)
    loss(logits_of(0), LABELS, EVERY, 0)
    before = loss.values.clone()
    z = logits_of(1)
    assert torch.equal(loss.eval()(z, LABELS, EVERY, 1), F.cross_entropy(z, LABELS))
    assert torch.equal(loss.values, before)


def test_the_largest_logits_keep_their_chances() -> None:
    loss = SAF(6, 12, gap=1, top_k=3, dtype=torch.float32, temperature=4.0)
    z = 3 * logits_of(0, 12)
    loss.keep(z, EVERY, 0)
    found, known = loss.earlier(EVERY, 1)
    assert known.all()
    exact, kept = (z / 4).softmax(-1), (found / 4).softmax(-1)
    top = z.topk(3).indices
    torch.testing.assert_close(kept.gather(-1, top), exact.gather(-1, top))
    rest = kept.scatter(-1, top, -1).sort(-1).values[:, 3:]
    torch.testing.assert_close(rest, rest[:, :1].expand_as(rest))


def test_memory_is_bounded_and_half_precision_is_enough() -> None:
    half, exact = saf(dtype=torch.float16), saf()
    for epoch in range(4):
        z = 10 * logits_of(epoch)
        torch.testing.assert_close(half(z, LABELS, EVERY, epoch), exact(z, LABELS, EVERY, epoch), rtol=1e-3, atol=0)
    large = SAF(1000, 100, gap=3, top_k=10)
    assert sum(buffer.nbytes for buffer in large.buffers()) == 4 * 1000 * (11 * 2 + 10 * 2 + 4)


def test_a_saved_loss_goes_on_bit_for_bit() -> None:
    whole, first, second = (saf(top_k=2) for _ in range(3))
    for epoch in range(3):
        for loss in (whole, first):
            loss(logits_of(epoch), LABELS, EVERY, epoch)
    second.load_state_dict(first.state_dict())
    for epoch in range(3, 6):
        found = [loss(logits_of(epoch), LABELS, EVERY, epoch) for loss in (whole, second)]
        assert torch.equal(*found)
        assert not torch.equal(found[0], F.cross_entropy(logits_of(epoch), LABELS))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"gap": 0}, "gap=0; it must be at least 1"),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_k": 3}, "top_k=3; it must be 1 to 2"),
    ],
)
def test_bad_options(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        saf(**options)


def test_an_unknown_example_is_named() -> None:
    with pytest.raises(UserError, match="example 6 of 6; numbers begin at 0"):
        saf()(logits_of(0), LABELS, EVERY + 1, 0)
