"""Flatness against differences of the loss and plain SAM, and on a model that a small step breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch.func import functional_call

from assay.diagnostics import Result, diagnostics
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows

IDS = torch.randint(9, (2, 12), generator=torch.Generator().manual_seed(0))


def small() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 9, "n_embd": 4, "n_layer": 1, "n_head": 1, "n_inner": 2, "n_positions": 12}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return model


def flatness(model: Any) -> Result:
    diagnostic = diagnostics.build("flatness", subject=Subject(model))
    diagnostic.work(Windows(IDS, ("a", "b")))
    result = diagnostic.result()
    assert result is not None
    return result


def loss_of(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The loss on the first window, as a function of all parameters in one vector."""
    named = dict(model.named_parameters())
    sizes = [parameter.numel() for parameter in named.values()]

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = zip(named, vector.split(sizes), strict=True)
        weights = {name: part.view_as(named[name]) for name, part in parts}
        logits = functional_call(model, weights, kwargs={"input_ids": IDS[:1], "use_cache": False}).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:1, 1:].flatten())

    return loss


def test_is_second_differences_and_one_step_of_sam() -> None:
    """vᵀHv = (L(w + hv) − 2 L(w) + L(w − hv)) / h² for the four probes."""
    model = small()
    result = flatness(model)
    loss = loss_of(model)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for _ in range(4):
        step = 1e-4 * torch.randn(len(weights), generator=generator).sign()
        total += (loss(weights + step) - 2 * loss(weights) + loss(weights - step)).item() / 1e-8
    assert result.scalars["trace"] == pytest.approx(total / 4 / len(weights), rel=1e-2)
    (gradient,) = torch.autograd.grad(loss(moved := weights.clone().requires_grad_()), moved)
    step = 0.001 * weights.norm() * gradient / gradient.norm()
    assert result.scalars["sharpness"] == pytest.approx((loss(weights + step) - loss(weights)).item(), rel=1e-2)


def test_the_model_is_left_as_it_was() -> None:
    model = small().requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    first = flatness(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert flatness(model) == first


def test_a_sharp_model_is_found_and_a_flat_one_is_not() -> None:
    sharp = small()
    with torch.no_grad():
        sharp.transformer.ln_f.weight *= 100
    (finding,) = flatness(sharp).findings
    assert finding.symptom == "sharp-minimum"
    assert finding.value > 0.5
    assert not flatness(small()).findings
