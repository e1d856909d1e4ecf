"""Cross-entropy against its formula and torch's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.losses import losses
from assay.losses.cross_entropy import CrossEntropy


def sample(seed: int, batch: int = 3, time: int = 5, vocab: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, time, vocab, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab, (batch, time), generator=generator)
    targets[torch.rand(batch, time, generator=generator) < 0.3] = -100
    targets[0, 0] = 1
    return logits, targets


def test_equal_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    loss = CrossEntropy()(torch.zeros(2, 3, 257), torch.randint(257, (2, 3)))
    assert loss.item() == pytest.approx(math.log(257))


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.4]), st.sampled_from([0.0, 1e-3, 0.5]))
def test_is_its_formula(seed: int, smoothing: float, z_loss: float) -> None:
    """Mean over counted tokens of −Σ q log p + z (log Σ exp)², q = (1 − s) · target + s / vocabulary."""
    logits, targets = sample(seed)
    total, counted = 0.0, 0
    for row, target in zip(logits.flatten(0, 1).tolist(), targets.flatten().tolist(), strict=True):
        if target == -100:
            continue
        normaliser = math.log(math.fsum(math.exp(z) for z in row))
        log_p = [z - normaliser for z in row]
        q = [smoothing / len(row) + (1 - smoothing) * (index == target) for index in range(len(row))]
        total += -sum(a * b for a, b in zip(q, log_p, strict=True)) + z_loss * normaliser**2
        counted += 1
    loss = losses.build("cross-entropy", {"label_smoothing": smoothing, "z_loss": z_loss})(logits, targets)
    assert loss.item() == pytest.approx(total / counted, rel=1e-5)


def test_ignored_targets_have_no_gradient() -> None:
    logits, targets = sample(1)
    logits.requires_grad_()
    CrossEntropy(label_smoothing=0.1, z_loss=0.1)(logits, targets).backward()
    assert logits.grad is not None
    ignored = targets == -100
    assert ignored.any()
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored].abs().sum(-1) > 0).all()


def test_z_loss_pulls_the_normaliser_towards_one() -> None:
    """A shift of all logits changes nothing but the z term, whose gradient is 2z · log Σ exp z · softmax."""
    logits, targets = sample(2)
    targets = targets.clamp(min=0)
    plain, with_z = CrossEntropy(), CrossEntropy(z_loss=0.25)
    assert plain(logits + 5, targets).item() == pytest.approx(plain(logits, targets).item(), rel=1e-5)
    logits.requires_grad_()
    (with_z(logits, targets) - plain(logits, targets)).backward()
    normaliser = torch.logsumexp(logits, -1, keepdim=True)
    expected = 2 * 0.25 * normaliser * torch.softmax(logits, -1) / targets.numel()
    torch.testing.assert_close(logits.grad, expected.detach(), rtol=1e-5, atol=1e-7)


def test_logits_in_bfloat16_are_summed_in_float32() -> None:
    logits, targets = sample(3, vocab=300)
    half = logits.bfloat16()
    loss = CrossEntropy(z_loss=0.1)(half, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, CrossEntropy(z_loss=0.1)(half.float(), targets))
    expected = F.cross_entropy(half.float().flatten(0, 1), targets.flatten())
    assert torch.equal(CrossEntropy()(half, targets), expected)
