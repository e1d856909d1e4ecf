"""The rule's factors, its classes of parameters, and what a run makes of them; and the two laws of AdamW's noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from assay.errors import Interrupted, UserError
from assay.models import Decoder, ModelConfig
from assay.models.initialization import initialize
from assay.optim import build_optimizer, optimizers, parameter_groups, transfers
from assay.optim.transfer.weight_decay_scaling import WeightDecayScaling
from assay.slots import Component
from assay.training.config import RunConfig
from assay.training.loop import train

SIZES = {"depth": 2, "head_dim": 8, "vocab_size": 11, "max_length": 8}


def decoder(width: int, **options: Any) -> Decoder:
    return Decoder(ModelConfig(**SIZES, hidden_size=width, **options))


def settings(model: nn.Module, transfer: WeightDecayScaling, name: str = "adamw") -> dict[str, tuple[float, float]]:
    """Name of a parameter → its rate and its decay, where the tuned ones are 0.01 and 0.1."""
    component = Component.parse(optimizers, {"name": name, "lr": 0.01, "weight_decay": 0.1})
    optimizer = build_optimizer(component, model, transfer)
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_the_factors_of_each_class(ratio: int) -> None:
    found = settings(decoder(16 * ratio), WeightDecayScaling(16 * ratio, width=16))
    matrix = (0.01 / ratio, 0.1 * {1: 1.0, 2: 1.414213562, 4: 2.0, 8: 2.828427125}[ratio])
    assert found["layers.0.mixer.branch.query.weight"] == pytest.approx(matrix)
    assert found["layers.1.mlp.branch.down.weight"] == pytest.approx(matrix)
    assert math.sqrt(matrix[0] / matrix[1]) * ratio**0.75 == pytest.approx(math.sqrt(0.01 / 0.1))
    assert found["head.projection.weight"] == pytest.approx((0.01 / ratio, 0.0))
    assert found["embedding.weight"] == found["final_norm.weight"] == (0.01, 0.0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_optimizer_takes_them(name: str) -> None:
    model = decoder(32)
    assert settings(model, WeightDecayScaling(32, width=16), name) == settings(
        model, WeightDecayScaling(32, width=16)
    )


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64), st.floats(0, 2))
def test_two_transfers_are_one(first: int, second: int, third: int, exponent: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    steps = [WeightDecayScaling(b, width=a, exponent=exponent) for a, b in ((first, second), (second, third))]
    whole = WeightDecayScaling(third, width=first, exponent=exponent).groups(model)
    for key in ("lr_scale", "decay_scale"):
        one, two = (transfer.groups(model) for transfer in steps)
        for a, b, both in zip(one, two, whole, strict=True):
            assert a[key] * b[key] == pytest.approx(both[key])


@pytest.mark.parametrize(
    "options", [{}, {"norm": "seednorm", "head": "tied"}, {"head": {"name": "untied", "bias": True}}]
)
def test_each_parameter_is_in_exactly_one_class(options: dict[str, Any]) -> None:
    model = decoder(32, **options)
    grouped = [id(p) for group in WeightDecayScaling(32, width=16).groups(model) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()}
    found = settings(model, WeightDecayScaling(32, width=16))
    assert found["embedding.weight"] == (0.01, 0.0)
    matrices = {id(p) for group in parameter_groups(model) if group["role"] == "matrix" for p in group["params"]}
    assert {name for name, (_, decay) in found.items() if decay} == {
        name for name, p in model.named_parameters() if id(p) in matrices
    }


def test_initial_weights_are_mups() -> None:
    plain, scaled = decoder(64), decoder(64)
    for model in (plain, scaled):
        initialize(model, 0, 0.02)
    WeightDecayScaling(64, width=16).initialize(scaled)
    factors = {"head.projection.weight": 0.25, "layers.0.mlp.branch.up.weight": 0.5, "embedding.weight": 1.0}
    theirs = dict(scaled.named_parameters())
    for name, p in plain.named_parameters():
        factor = factors.get(name, 0.5 if p.ndim == 2 else 1.0)
        assert torch.equal(theirs[name], factor * p)


def test_at_its_own_width_nothing_changes(tiny: dict[str, Any], tmp_path: Path) -> None:
    """All but the decay of embeddings and heads, which the rule has not."""
    tiny["optimizer"]["weight_decay"] = 0.0
    plain = train(tiny, out=tmp_path / "plain")
    same = train(tiny, out=tmp_path / "same", values={"transfer.width": 16})
    other = train(tiny, out=tmp_path / "other", values={"transfer.width": 8})
    assert plain.bits_per_byte == same.bits_per_byte != other.bits_per_byte
    one, two = (load_file(tmp_path / run / "checkpoint" / "model.safetensors") for run in ("plain", "same"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_stopped_and_resumed_it_ends_with_the_same_bits(tiny: dict[str, Any], tmp_path: Path) -> None:
    values = {"transfer.width": 8}
    train(tiny, out=tmp_path / "whole", values=values)
    with pytest.raises(Interrupted):
        train(tiny, out=tmp_path / "stopped", values=values, stop=Once())
    train(tiny, out=tmp_path / "stopped", values=values, resume=True)
    one, two = (load_file(tmp_path / run / "checkpoint" / "model.safetensors") for run in ("whole", "stopped"))
    assert all(torch.equal(one[name], two[name]) for name in one)


class Once:
    """Set the fifth time that it is asked, and then on."""

    left = 5

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 1


def test_the_default_rate_is_the_proxys() -> None:
    wide, narrow = ({"model": {"hidden_size": width}} for width in (512, 128))
    config = RunConfig.parse({**wide, "transfer": {"width": 128}})
    assert config.transfer.name == "weight-decay-scaling"
    assert config.optimizer.options["lr"] == RunConfig.parse(narrow).optimizer.options["lr"]
    assert RunConfig.parse({**wide, "transfer": {"width": 128}, "optimizer": {"lr": 0.5}}).optimizer.options == {
        "lr": 0.5
    }
    assert RunConfig.parse(wide).transfer.name == "none"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"width": 0}, "option width=0: input should be greater than 0"),
        ({"exponent": -1}, "option exponent=-1: input should be greater than or equal to 0"),
        ({"widht": 64}, "has no option 'widht'; nearest: width"),
    ],
)
def test_bad_options(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Component.parse(transfers, {"name": "weight-decay-scaling", **options})


@pytest.mark.parametrize("width", [64, 128])
def test_noise_alone_settles_at_its_steady_state(width: int) -> None:
    """With β₁ = 0 the mean square tends to η / 2λ, and the largest singular value to 2 √d times its root.

    Pure noise has the exponent 0.5 of the width; 0.75 is what signals of networks make of it.
    """
    weight = nn.Parameter(torch.zeros(width, width))
    optimizer = torch.optim.AdamW([weight], lr=0.01, betas=(0.0, 0.999), weight_decay=1.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        weight.grad = torch.randn(width, width, generator=generator)
        optimizer.step()
    size = weight.detach().square().mean().sqrt().item()
    assert size == pytest.approx(math.sqrt(0.01 / 2), rel=0.03)
    assert torch.linalg.matrix_norm(weight.detach(), 2).item() == pytest.approx(2 * width**0.5 * size, rel=0.06)
