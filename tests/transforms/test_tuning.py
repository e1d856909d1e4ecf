from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from assay.data import DataConfig
from assay.data.windows import TokenData, prepare
from assay.errors import AssayError, UserError
from assay.models import Decoder
from assay.transforms.tuning import Tuning, held_out, tune

STILL = {"steps": 4, "batch_size": 2, "sequence_length": 16, "lr": 1e-2}


@pytest.mark.parametrize("penalised", [False, True])
def test_against_a_loop_written_out(make_decoder: Callable[..., Decoder], data: TokenData, penalised: bool) -> None:
    ours, theirs = make_decoder(), make_decoder()
    schedule = {"name": "cosine", "warmup": 0.5, "final": 0.5}
    optimizer = {"name": "adamw", "betas": (0.8, 0.9), "weight_decay": 0.5}
    steps: list[int] = []
    tune(
        ours,
        data,
        Tuning.parse({**STILL, "schedule": schedule, "optimizer": optimizer, "grad_clip": 0.3, "seed": 5}),
        before_step=steps.append,
        penalty=(lambda ids: ours.embedding.weight.square().sum() * ids.shape[1]) if penalised else None,
    )
    assert steps == [0, 1, 2, 3]
    assert not ours.training

    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0}]
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.9), foreach=False)
    for step, factor in enumerate(
        [0.25, 0.75, 0.75 + 0.25 * math.cos(math.pi / 4), 0.75 + 0.25 * math.cos(3 * math.pi / 4)]
    ):
        for group in reference.param_groups:
            group["lr"] = 1e-2 * factor
        rows = data.batch(step, seed=5, batch_size=2, sequence_length=16)
        loss = F.cross_entropy(theirs(rows[:, :-1]).mT, rows[:, 1:])
        if penalised:
            loss = loss + 16 * theirs.embedding.weight.square().sum()
        gradients = torch.autograd.grad(loss, list(theirs.parameters()))
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert norm > 0.3
        for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
            parameter.grad = gradient * 0.3 / (norm + 1e-6)
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


def test_the_share_and_the_loss_are_reported(make_decoder: Callable[..., Decoder], data: TokenData) -> None:
    reports: list[tuple[float, str]] = []
    model = make_decoder()
    rows = data.batch(0, seed=0, batch_size=2, sequence_length=16)
    first = F.cross_entropy(model(rows[:, :-1]).mT, rows[:, 1:]).item()
    tune(model, data, Tuning.parse(STILL), report=lambda share, status: reports.append((share, status)))
    assert [share for share, _ in reports] == [0.25, 0.5, 0.75, 1.0]
    assert reports[0][1].startswith(f"loss {first:.3f}  ")


def test_a_loss_that_is_not_finite_ends_it(make_decoder: Callable[..., Decoder], data: TokenData) -> None:
    with pytest.raises(AssayError, match=r"no longer finite at step 1 of 4; lower tuning\.lr") as caught:
        tune(
            make_decoder(), data, Tuning.parse(STILL), penalty=lambda ids: torch.tensor(math.inf, requires_grad=True)
        )
    assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize(("asked", "longest", "length"), [(None, 24, 24), (None, 4096, 256), (8, 24, 8)])
def test_the_length_of_a_sequence(
    make_decoder: Callable[..., Decoder], asked: int | None, longest: int, length: int
) -> None:
    assert Tuning(sequence_length=asked).length(make_decoder(max_length=longest, depth=1)) == length


def test_a_text_shorter_than_a_sequence_is_named(make_decoder: Callable[..., Decoder], data: TokenData) -> None:
    model = make_decoder(max_length=10**6, depth=1)
    tuning = Tuning(sequence_length=len(data.train))
    with pytest.raises(
        UserError, match=rf"has {len(data.train)} tokens to train on, fewer .* tuning.sequence_length below"
    ):
        tuning.batch(data, model, 0)


@torch.no_grad()
def test_held_out_loss_of_a_model_that_knows_nothing(make_decoder: Callable[..., Decoder], data: TokenData) -> None:
    model = make_decoder()
    model.head.projection.weight.zero_()
    found = held_out(model, data, sequence_length=24)
    assert found.nats_per_token == pytest.approx(math.log(257))
    # One token per byte, each predicted once.
    assert found.bits_per_byte == pytest.approx(math.log2(257), rel=1e-3)


@torch.no_grad()
def test_held_out_loss_over_all_targets_at_once(make_decoder: Callable[..., Decoder], corpus: Path) -> None:
    fields = {"corpus": f"text:{corpus}", "tokenizer": "bpe:300", "sequence_length": 24, "eval_bytes": 1024}
    data = prepare(DataConfig.parse(fields))
    model = make_decoder(vocab_size=300)
    losses: list[Tensor] = []
    for inputs, targets in data.evaluation(24, 1):
        logits = model(inputs)[0].double().log_softmax(-1)
        losses += [-logits[place, target] for place, target in enumerate(targets[0]) if target != -100]
    total = torch.stack(losses)
    found = held_out(model, data, sequence_length=24, batch_size=3)
    assert found.nats_per_token == pytest.approx(float(total.mean()), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(float(total.sum()) / math.log(2) / data.eval_bytes, rel=1e-5)
