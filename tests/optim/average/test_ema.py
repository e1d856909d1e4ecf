"""The exponential mean of checkpoints: worked shares, fixed points, torch's moving average of the same weights."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from assay.errors import UserError
from assay.optim import averages
from assay.optim.average.ema import ExponentialMean
from assay.optim.average.mean import Mean
from assay.training.averaging import average_weights
from assay.training.loop import train


def test_the_oldest_dominates_as_published() -> None:
    shares = ExponentialMean(alpha=0.2).weights(6)
    assert shares == pytest.approx([0.32768, 0.08192, 0.1024, 0.128, 0.16, 0.2])
    assert sum(shares) == pytest.approx(1)


def test_corrected_shares_never_fall() -> None:
    shares = ExponentialMean(alpha=0.2, corrected=True).weights(6)
    assert shares == pytest.approx([0.0888, 0.1110, 0.1388, 0.1735, 0.2168, 0.2711], abs=1e-4)
    assert sum(shares) == pytest.approx(1)
    assert all(older < newer for older, newer in itertools.pairwise(shares))


@pytest.mark.parametrize("corrected", [False, True])
def test_limits(corrected: bool) -> None:
    assert ExponentialMean(alpha=1.0, corrected=corrected).weights(4) == [0, 0, 0, 1]
    assert ExponentialMean(corrected=corrected).weights(1) == pytest.approx([1])
    small = ExponentialMean(alpha=1e-6, corrected=True).weights(4)
    assert small == pytest.approx([0.25] * 4, rel=1e-5)


def networks(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double() for _ in range(count)]


def states(modules: list[nn.Module]) -> list[dict[str, torch.Tensor]]:
    for age, module in enumerate(modules):
        module[1].num_batches_tracked.fill_(age)  # type: ignore[index]
        module[1].running_mean.fill_(age)  # type: ignore[index]
    return [copy.deepcopy(module.state_dict()) for module in modules]


def test_against_torchs_moving_average() -> None:
    """``AveragedModel`` starts at the first weights that it sees, as the published recursion does."""
    modules = networks(6)
    theirs = AveragedModel(modules[0], multi_avg_fn=get_ema_multi_avg_fn(decay=0.8), use_buffers=True)
    for module in modules:
        theirs.update_parameters(module)
    ours = average_weights([m.state_dict() for m in modules], ExponentialMean(alpha=0.2).weights(6))
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(ours[name], value, rtol=1e-12, atol=1e-14)


def test_the_plain_mean_against_torchs() -> None:
    modules = networks(6)
    theirs = AveragedModel(modules[0])
    for module in modules:
        theirs.update_parameters(module)
    ours = average_weights([m.state_dict() for m in modules], Mean().weights(6))
    for name, value in theirs.module.named_parameters():
        torch.testing.assert_close(ours[name], value.detach(), rtol=1e-12, atol=1e-14)


def test_averages_are_linear_and_leave_integers_as_the_last_has_them() -> None:
    kept = states(networks(5))
    shares = ExponentialMean().weights(5)
    mean = average_weights(kept, shares)
    scaled = [{k: 3 * v if v.is_floating_point() else v for k, v in state.items()} for state in kept]
    for name, value in average_weights(scaled, shares).items():
        expected = 3 * mean[name] if value.is_floating_point() else kept[-1][name]
        torch.testing.assert_close(value, expected)
    same = average_weights([kept[0]] * 5, shares)
    for name, value in same.items():
        torch.testing.assert_close(value, kept[0][name])


def test_the_middle_of_a_straight_line_is_its_mean() -> None:
    start, step = torch.randn(7), torch.randn(7)
    line = [{"w": start + i * step} for i in range(5)]
    torch.testing.assert_close(average_weights(line, Mean().weights(5))["w"], start + 2 * step)


def test_a_run_ends_with_the_average(tiny: dict[str, Any], tmp_path: Path) -> None:
    constant = {"schedule": {"name": "constant", "warmup": 0.0}}
    train(tiny, out=tmp_path / "plain", values={**constant, "training.keep": [10 / 12, 11 / 12, 1.0]})
    average = {"name": "ema", "last": 3, "spacing": 1 / 12, "alpha": 0.25, "corrected": True}
    train(tiny, out=tmp_path / "averaged", values={**constant, "average": average})
    kept = [load_file(tmp_path / f"plain/checkpoints/{n:06d}/model.safetensors") for n in (10, 11, 12)]
    shares = [9 / 37, 12 / 37, 16 / 37]
    for name, value in load_file(tmp_path / "averaged/checkpoint/model.safetensors").items():
        expected = sum(share * weights[name] for share, weights in zip(shares, kept, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"alpha": 1.5}, {"last": 1}, {"spacing": 0.0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"average 'ema', option {next(iter(options))}="):
        averages.build("ema", options)
