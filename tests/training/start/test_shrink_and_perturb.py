"""Shrink and perturb: its limits, variances and invariances, and runs that start by it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from assay.errors import Interrupted, UserError
from assay.models import Decoder
from assay.models.initialization import initialize
from assay.training.config import RunConfig
from assay.training.loop import train
from assay.training.objective import Objective
from assay.training.start.shrink_and_perturb import ShrinkAndPerturb, shrink_and_perturb

CONSTANT = {"schedule": {"name": "constant", "warmup": 0.0}}


def perceptron(seed: int, *, bias: bool = True, width: int = 256) -> nn.Sequential:
    torch.manual_seed(seed)
    sizes = ((64, width), (width, width), (width, 10))
    layers = [part for a, b in sizes for part in (nn.Linear(a, b, bias=bias), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def equal(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_limits_are_a_warm_start_and_a_fresh_one() -> None:
    old = perceptron(0)
    warm, fresh = perceptron(1), perceptron(1)
    shrink_and_perturb(old, warm, shrink=1.0, perturb=0.0)
    assert equal(old, warm)
    shrink_and_perturb(old, fresh, shrink=0.0, perturb=1.0)
    assert equal(fresh, perceptron(1))


def test_without_biases_shrinking_scales_the_outputs_and_no_more() -> None:
    """Three matrices: f(0.6 θ) = 0.216 f(θ), so the same classes with less confidence."""
    old, new = perceptron(0, bias=False).double(), perceptron(1, bias=False).double()
    x = torch.randn(50, 64, dtype=torch.float64)
    shrink_and_perturb(old, new, shrink=0.6, perturb=0.0)
    before, after = old(x), new(x)
    torch.testing.assert_close(after, 0.216 * before, rtol=1e-9, atol=1e-14)
    entropies = [torch.distributions.Categorical(logits=logits).entropy() for logits in (before, after)]
    assert (entropies[1] > entropies[0]).all()


def test_variances_add_and_settle() -> None:
    """λ² Var(old) + γ² Var(init) after one step; γ² Var(init) / (1 − λ²) after many without training between."""
    old = perceptron(0, width=512)
    start = old[2].weight.var().item()
    first = perceptron(1, width=512)
    with torch.no_grad():
        old[2].weight.mul_(3)
    shrink_and_perturb(old, first, shrink=0.4, perturb=0.5)
    assert first[2].weight.var().item() == pytest.approx((0.16 * 9 + 0.25) * start, rel=0.02)
    for step in range(2, 12):
        fresh = perceptron(step, width=512)
        shrink_and_perturb(old, fresh, shrink=0.4, perturb=0.5)
        old = fresh
    assert old[2].weight.var().item() == pytest.approx(0.25 * start / (1 - 0.16), rel=0.02)


def test_gains_are_mixed_and_buffers_fresh_and_tied_weights_counted_once() -> None:
    def network() -> nn.Module:
        module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        module[2].weight = module[0].weight
        return module

    old, new = network(), network()
    fresh = copy.deepcopy(new)
    with torch.no_grad():
        old[1].weight.fill_(2.0)
        old[1].bias.fill_(3.0)
        old[1].running_mean.fill_(5.0)
    shrink_and_perturb(old, new, shrink=0.4, perturb=0.1)
    assert new[1].weight.tolist() == pytest.approx([0.9] * 4)
    assert new[1].bias.tolist() == pytest.approx([1.2] * 4)
    assert new[1].running_mean.tolist() == [0.0] * 4
    torch.testing.assert_close(new[0].weight, 0.4 * old[0].weight + 0.1 * fresh[0].weight)
    assert new[2].weight is new[0].weight


def test_a_network_with_fewer_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        shrink_and_perturb(perceptron(0), perceptron(0)[:-1], shrink=0.4, perturb=0.1)


def objective(config: RunConfig) -> Objective:
    model = config.model.model_copy(update={"vocab_size": 257})
    made = Objective(Decoder(model), config.loss.build(), "float32")
    initialize(made.model, config.seed, model.init_std)
    return made


def started(config: RunConfig, run: Path, **options: float) -> dict[str, torch.Tensor]:
    module = objective(config)
    assert ShrinkAndPerturb(config.seed, run=str(run), **options)(module, torch.optim.SGD(module.parameters())) == 0
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_run_starts_from_the_mixture(tiny: dict[str, Any], tiny_config: RunConfig, tmp_path: Path) -> None:
    train(tiny, out=tmp_path / "first")
    old = load_file(tmp_path / "first" / "checkpoint" / "model.safetensors")
    warm = started(tiny_config, tmp_path / "first", shrink=1.0, perturb=0.0)
    assert all(torch.equal(warm[name], value) for name, value in old.items())
    noise = started(tiny_config, tmp_path / "first", shrink=0.0, perturb=1.0)
    mixed = started(tiny_config, tmp_path / "first", shrink=0.4, perturb=0.1)
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.4 * old[name] + 0.1 * noise[name], rtol=1e-6, atol=1e-8)
    name = "model.embedding.weight"
    assert noise[name].std().item() == pytest.approx(tiny_config.model.init_std, rel=0.02)
    began = objective(tiny_config).state_dict()[name]
    apart = torch.corrcoef(torch.stack([noise[name].flatten(), began.flatten()]))[0, 1]
    assert abs(apart.item()) < 0.05, "the noise is not what the first run began with"


def test_the_optimizer_starts_anew_and_a_stopped_run_ends_alike(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(tiny, out=tmp_path / "first", values=CONSTANT)
    start = {"name": "shrink-and-perturb", "run": str(tmp_path / "first")}
    values = {**CONSTANT, "start": start, "training.checkpoint_seconds": 0}
    whole = train(tiny, out=tmp_path / "whole", values=values)

    class Once:
        def is_set(self) -> bool:
            return (tmp_path / "stopped" / "checkpoint").exists()

    with pytest.raises(Interrupted):
        train(tiny, out=tmp_path / "stopped", values=values, stop=Once())
    again = train(tiny, out=tmp_path / "stopped", values=values, resume=True)
    assert again.bits_per_byte == whole.bits_per_byte
    state = load_file(tmp_path / "whole" / "checkpoint" / "optimizer.safetensors")
    assert {int(value) for name, value in state.items() if name.endswith("|step")} == {12}
    warm = train(tiny, out=tmp_path / "warm", values={**CONSTANT, "start.run": start["run"], "start.data": False})
    assert warm.bits_per_byte != whole.bits_per_byte
    ids = {
        RunConfig.parse({**tiny, "start": {**start, **options}}).run_id("data")
        for options in ({}, {"shrink": 0.5}, {"perturb": 0.2}, {"name": "checkpoint"})
    }
    assert len(ids) == 4


def test_bad_options_are_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(tiny, out=tmp_path / "first")
    start = {"name": "shrink-and-perturb", "run": str(tmp_path / "first")}
    with pytest.raises(UserError, match=r"option shrink=1\.5"):
        RunConfig.parse({**tiny, "start": {**start, "shrink": 1.5}})
    with pytest.raises(UserError, match=r"option perturb=-0\.1"):
        RunConfig.parse({**tiny, "start": {**start, "perturb": -0.1}})
    with pytest.raises(UserError, match="needs the option 'run'"):
        RunConfig.parse({**tiny, "start": "shrink-and-perturb"})
    with pytest.raises(UserError, match="holds no checkpoint"):
        train(tiny, out=tmp_path / "none", values={"start": {**start, "run": str(tmp_path / "nothing")}})
    with pytest.raises(UserError, match="does not fit this model"):
        train(tiny, out=tmp_path / "wide", values={"start": start, "model.hidden_size": 64})
