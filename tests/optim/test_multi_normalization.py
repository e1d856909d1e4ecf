"""The alternating scheme: each projection is the steepest direction of its norm, and known methods are instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from assay.errors import Interrupted, UserError
from assay.optim.multi_normalization import PROJECTIONS, MultiNormalization, Norm, multi_normalize
from assay.optim.muon import COEFFICIENTS, orthogonalize
from assay.training.config import RunConfig
from assay.training.loop import train

SHAPES = [(5, 8), (8, 5), (6, 6)]
NORMS: dict[Norm, Any] = {
    "rows": lambda x: (x.norm(dim=1) / x.shape[1] ** 0.5).max(),
    "columns": lambda x: (x.norm(dim=0) / x.shape[0] ** 0.5).max(),
    "spectral": lambda x: torch.linalg.svdvals(x)[0] / max(x.shape) ** 0.5,
    "frobenius": lambda x: x.square().mean().sqrt(),
    "max": lambda x: x.abs().max(),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", NORMS)
def test_a_projection_is_the_steepest_of_its_norm(norm: Norm, shape: tuple[int, int]) -> None:
    x = draw(*shape)
    best = PROJECTIONS[norm](x)
    torch.testing.assert_close(NORMS[norm](best), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(best.square().mean(), torch.tensor(1.0, dtype=torch.float64))
    for seed in range(1, 200):
        other = best + 0.3 * draw(*shape, seed=seed)
        assert (x * other).sum() / NORMS[norm](other) < (x * best).sum()


@pytest.mark.parametrize("norms", [["rows", "columns"], ["spectral", "rows"], ["columns", "max"]])
def test_what_is_normal_for_all_norms_stays(norms: list[Norm]) -> None:
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)
    torch.testing.assert_close(multi_normalize(3 * signs, norms, 3), signs)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_and_columns_come_to_a_common_fixed_point(shape: tuple[int, int]) -> None:
    x = multi_normalize(draw(*shape), ["rows", "columns"], 300)
    for norm in ("rows", "columns"):
        torch.testing.assert_close(PROJECTIONS[norm](x), x)


def test_rows_then_spectral_is_swan_and_fixed_after_one_pass() -> None:
    """The whitened rows of a wide matrix are orthonormal but for a factor, so they have one norm already."""
    x = draw(4, 9)
    rows = x / x.norm(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(rows @ rows.mT)
    expected = 3 * vectors @ torch.diag(values**-0.5) @ vectors.mT @ rows
    for passes in (1, 4):
        torch.testing.assert_close(multi_normalize(x, ["rows", "spectral"], passes), expected)


def test_spectral_alone_is_muons_direction_without_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton-Schulz's values stay in a band around 1, and its singular vectors are those of the gradient."""
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    x = draw(6, 10)
    ours, theirs = multi_normalize(x, ["spectral"], 1) / 10**0.5, orthogonalize(x[None])[0]
    values = torch.linalg.svdvals(x) / x.norm()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close((ours * theirs).sum(), values.sum())


def test_no_singular_vector_is_made_of_rounding() -> None:
    flat = torch.outer(draw(5).float(), draw(7, seed=1).float())
    for gradient in (flat, torch.zeros(5, 7)):
        x = multi_normalize(gradient, ["rows", "spectral"], 2)
        assert x.isfinite().all()
        assert torch.linalg.matrix_rank(x) == torch.linalg.matrix_rank(gradient)


@pytest.mark.parametrize("norm", NORMS)
def test_zeros_stay_zero(norm: Norm) -> None:
    assert not multi_normalize(torch.zeros(2, 3, 4), [norm], 2).any()


def test_max_alone_is_sign_descent() -> None:
    weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
    weight.grad = draw(3, 4)
    MultiNormalization([weight], lr=0.1, norms=("max",), passes=1, scale=0.5).step()
    torch.testing.assert_close(weight.detach(), -0.05 * weight.grad.sign())


class After:
    """Set from the n-th time on that it is asked."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(
    "optimizer", [{"name": "sinkgd"}, {"name": "multi-normalization", "norms": ["rows", "spectral"], "passes": 1}]
)
def test_a_stopped_run_ends_with_the_same_bits(optimizer: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    config = {
        "model": {"depth": 2, "hidden_size": 32, "num_heads": 2},
        "data": {"corpus": f"text:{corpus}", "sequence_length": 32, "batch_size": 4, "eval_bytes": 2048},
        "optimizer": optimizer,
        "training": {"tokens": 8 * 4 * 32, "evaluations": 2, "compile": False, "checkpoint_seconds": 1e9},
    }
    train(config, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, out=tmp_path / "stopped", stop=After(3))
    train(config, out=tmp_path / "stopped", resume=True)
    one, two = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("option", [{"norms": []}, {"norms": ["row"]}, {"passes": 0}])
def test_options_out_of_range_are_refused_in_one_line(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(option))) as caught:
        RunConfig.parse({"optimizer": {"name": "multi-normalization", **option}})
    assert "\n" not in str(caught.value)
