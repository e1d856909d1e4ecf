from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from assay.errors import UserError
from assay.measures.geometry import (
    Geometry,
    Kind,
    TokenwiseFit,
    TokenwiseMap,
    UpdateGeometry,
    best_map,
    local_parts,
    rank_correlation,
    token_figures,
)

HIDDEN = 6
KINDS: list[Kind] = ["diagonal", "orthogonal", "low-rank"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted(kind: Kind, x: Tensor, y: Tensor, **options: Any) -> tuple[TokenwiseMap, Geometry]:
    fit = TokenwiseFit(kind, **options)
    fit.update(x, y)
    return fit.result()


def planted(kind: Kind) -> Tensor:
    """A of a class; the low rank is 2."""
    if kind == "diagonal":
        return draw(HIDDEN, seed=5).diag()
    if kind == "orthogonal":
        return torch.linalg.qr(draw(HIDDEN, HIDDEN, seed=5)).Q
    return torch.eye(HIDDEN, dtype=torch.float64) + draw(HIDDEN, 2, seed=5) @ draw(2, HIDDEN, seed=6)


def test_worked_numbers_of_one_token() -> None:
    """u = (0, 4), t = (3, 4), r = (−3, 0), A x = (6, 4), and the first axis as the leading direction."""
    x, y, t = (torch.tensor([values]) for values in ([3.0, 0.0], [3.0, 4.0], [3.0, 4.0]))
    found = {name: value.item() for name, value in token_figures(x, y, t, torch.tensor([[1.0], [0.0]])).items()}
    assert found == pytest.approx(
        {
            "update_tokenwise": 0.8,
            "update_residual": 0.0,
            "state_tokenwise": 34 / (5 * math.sqrt(52)),
            "state_residual": -0.6,
            "projected_update": 0.0,
            "projected_residual": 1.0,
            "update_error": 0.75,
            "state_error": 0.6,
        }
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_the_class_leaves_nothing(kind: Kind) -> None:
    fit = TokenwiseFit(kind, rank=2, top=2)
    for seed in range(3):
        x = draw(2, 5, HIDDEN, seed=seed)
        fit.update(x, x @ planted(kind).T)
    tokenwise, found = fit.result()
    torch.testing.assert_close(tokenwise.matrix, planted(kind) - torch.eye(HIDDEN, dtype=torch.float64))
    assert (found.update_error, found.state_error) == (0, 0)
    assert (found.update_tokenwise, found.state_tokenwise) == pytest.approx((1, 1))
    assert math.isnan(found.update_residual)
    assert math.isnan(found.projected_residual)
    if kind == "low-rank":
        assert found.projected_update == pytest.approx(1)


def test_a_layer_that_does_nothing_has_states_alone() -> None:
    x = draw(20, HIDDEN)
    tokenwise, found = fitted("diagonal", x, x)
    means = UpdateGeometry(tokenwise)
    means.update(x, x)
    for geometry in (found, means.result()):
        assert (geometry.state_tokenwise, geometry.state_error) == pytest.approx((1, 0))
        undefined = {name for name, value in dataclasses.asdict(geometry).items() if math.isnan(value)}
        assert len(undefined) == 6


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(KINDS), tokens=st.integers(3, 40), rank=st.integers(1, HIDDEN), seed=st.integers(0, 2**20)
)
def test_joint_figures_are_those_of_the_vectors_end_to_end(kind: Kind, tokens: int, rank: int, seed: int) -> None:
    """With numpy, from all vectors side by side."""
    x, y = draw(tokens, HIDDEN, seed=seed), draw(tokens, HIDDEN, seed=seed + 1)
    y = y + 2 * x
    fit = TokenwiseFit(kind, rank=rank, top=2)
    for before, after in zip(x.split(7), y.split(7), strict=True):
        fit.update(before, after)
    tokenwise, found = fit.result()
    u, t = (y - x).numpy(), tokenwise(x).numpy()
    r, after, a_x = u - t, y.numpy(), x.numpy() + t
    _, sizes, axes = np.linalg.svd(t, full_matrices=False)
    v = axes[:2][sizes[:2] > 1e-8 * sizes[0]].T

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))

    expected = {"update_tokenwise": cosine(u, t), "state_tokenwise": cosine(after, a_x)}
    expected |= {"projected_update": np.linalg.norm(u @ v) ** 2 / np.linalg.norm(u) ** 2}
    expected |= {"update_error": np.linalg.norm(r) / np.linalg.norm(u)}
    expected |= {"state_error": np.linalg.norm(r) / np.linalg.norm(after)}
    if found.update_error > 1e-4:
        expected |= {"update_residual": cosine(u, r), "state_residual": cosine(after, r)}
        expected |= {"projected_residual": np.linalg.norm(r @ v) ** 2 / np.linalg.norm(r) ** 2}
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-6, abs=1e-6)


def test_maps_are_those_of_numpy_and_scipy() -> None:
    x, y = draw(50, HIDDEN), draw(50, HIDDEN, seed=1) + draw(50, HIDDEN)
    eye = np.eye(HIDDEN)
    rotation = scipy.linalg.orthogonal_procrustes(x.numpy(), y.numpy())[0]
    np.testing.assert_allclose(fitted("orthogonal", x, y)[0].matrix.numpy(), rotation.T - eye, atol=1e-12)
    slopes = [np.linalg.lstsq(x[:, [d]].numpy(), y[:, d].numpy(), rcond=None)[0][0] for d in range(HIDDEN)]
    np.testing.assert_allclose(fitted("diagonal", x, y)[0].matrix.numpy(), np.diag(slopes) - eye, atol=1e-12)
    linear = np.linalg.lstsq(x.numpy(), (y - x).numpy(), rcond=None)[0].T
    np.testing.assert_allclose(fitted("low-rank", x, y, rank=HIDDEN)[0].matrix.numpy(), linear, atol=1e-12)
    leading = np.linalg.svd(x.numpy() @ linear.T)[2][:2]
    lower = fitted("low-rank", x, y, rank=2)[0].matrix
    np.testing.assert_allclose(lower.numpy(), leading.T @ leading @ linear, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_map_of_the_class_leaves_less(kind: Kind) -> None:
    x, y = draw(50, HIDDEN), draw(50, HIDDEN, seed=1) + draw(50, HIDDEN)
    best = best_map(x.T @ x, (y - x).T @ x, kind, rank=2, ridge=3.0)

    def cost(b: Tensor) -> float:
        return ((y - x - x @ b.T).square().sum() + 3.0 * b.square().sum()).item()

    for seed in range(100):
        step = 0.01 * draw(HIDDEN, HIDDEN, seed=seed)
        if kind == "diagonal":
            other = best + step.diagonal().diag()
        elif kind == "orthogonal":
            eye = torch.eye(HIDDEN, dtype=torch.float64)
            other = torch.linalg.matrix_exp(step - step.T) @ (best + eye) - eye
        else:
            left, sizes, right = torch.linalg.svd(best + step)
            other = left[:, :2] * sizes[:2] @ right[:2]
        assert cost(other) > cost(best)


@pytest.mark.parametrize("kind", ["diagonal", "low-rank"])
def test_least_squares_leaves_a_residual_at_a_right_angle(kind: Kind) -> None:
    x, y = draw(30, HIDDEN), draw(30, HIDDEN, seed=1)
    tokenwise, found = fitted(kind, x, y, rank=2)
    t = tokenwise(x)
    assert (t * (y - x - t)).sum().item() == pytest.approx(0, abs=1e-10)
    assert found.update_tokenwise**2 + found.update_residual**2 == pytest.approx(1)
    assert found.update_tokenwise**2 == pytest.approx(1 - found.update_error**2)


def test_means_are_over_the_tokens_that_have_a_figure() -> None:
    x, y = draw(12, HIDDEN), draw(12, HIDDEN, seed=1)
    tokenwise, _ = fitted("diagonal", x, y, top=2)
    y[3] = x[3]
    means = UpdateGeometry(tokenwise)
    means.update(x[:5].view(1, 5, HIDDEN), y[:5].view(1, 5, HIDDEN))
    means.update(x[5:], y[5:])
    found = means.result()
    u, t, v = (y - x).numpy(), tokenwise(x).numpy(), tokenwise.directions.numpy()
    r = u - t
    cosines = [u[i] @ t[i] / np.linalg.norm(u[i]) / np.linalg.norm(t[i]) for i in range(12) if i != 3]
    assert found.update_tokenwise == pytest.approx(np.mean(cosines))
    assert found.projected_residual == pytest.approx(
        np.mean([np.sum((row @ v) ** 2) / np.sum(row**2) for row in r if row.any()]), rel=1e-5
    )
    states = [y[i].numpy() @ (x[i].numpy() + t[i]) for i in range(12)]
    sizes = [y[i].norm().item() * np.linalg.norm(x[i].numpy() + t[i]) for i in range(12)]
    assert found.state_tokenwise == pytest.approx(np.mean(np.array(states) / np.array(sizes)))


def test_what_depends_on_other_tokens_is_left_by_every_map_of_one_token() -> None:
    """Equal tokens in different places get different means of their prefix: at least that spread remains."""
    vocabulary = draw(3, HIDDEN)
    ids = torch.randint(3, (40, 8), generator=torch.Generator().manual_seed(1))
    x = vocabulary[ids]
    y = x + x.cumsum(1) / torch.arange(1, 9)[:, None]
    _, found = fitted("low-rank", x, y, rank=HIDDEN)
    u = y - x
    spread = sum((u[ids == token] - u[ids == token].mean(0)).square().sum().item() for token in range(3))
    left = found.update_error**2 * u.square().sum()
    assert left.item() == pytest.approx(spread, rel=1e-9)
    local = local_parts(x.flatten(0, 1), y.flatten(0, 1), kind="low-rank", rank=HIDDEN, neighbours=60, ridge=0.0)
    assert (u.flatten(0, 1) - local).square().sum() > 0.9 * spread


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequences", [False, True])
def test_local_parts_are_those_of_scikit_learns_neighbours(kind: Kind, sequences: bool) -> None:
    """A ridge is more data: states √λ e_d that stay as they are."""
    sklearn = pytest.importorskip("sklearn.neighbors")
    x, y = draw(40, HIDDEN), draw(40, HIDDEN, seed=1) + draw(40, HIDDEN)
    sequence = torch.arange(40) // 4 if sequences else None
    found = local_parts(x, y, kind=kind, neighbours=9, rank=2, ridge=0.02, sequence=sequence).numpy()
    own = sequence.numpy() if sequence is not None else np.arange(40)
    for i in range(40):
        others = np.flatnonzero(own != own[i])
        near = sklearn.NearestNeighbors(n_neighbors=9).fit(x[others].numpy())
        chosen = others[near.kneighbors(x[[i]].numpy(), return_distance=False)[0]]
        more = math.sqrt(0.02 * x.square().sum(1).mean().item()) * np.eye(HIDDEN)
        before, after = (np.concatenate([one[chosen].numpy(), more]) for one in (x, y))
        if kind == "orthogonal":
            a = scipy.linalg.orthogonal_procrustes(before, after)[0].T
        elif kind == "diagonal":
            a = np.diag((before * after).sum(0) / (before**2).sum(0))
        else:
            linear = np.linalg.lstsq(before, after - before, rcond=None)[0].T
            leading = np.linalg.svd(before @ linear.T)[2][:2]
            a = np.eye(HIDDEN) + leading.T @ leading @ linear
        np.testing.assert_allclose(found[i], (a - np.eye(HIDDEN)) @ x[i].numpy(), atol=1e-9)


def test_a_layer_that_scales_each_cluster_its_own_way_is_local_and_not_global() -> None:
    centres, scales = 100 * draw(2, HIDDEN), draw(2, HIDDEN, seed=1)
    cluster = torch.arange(30) % 2
    x = centres[cluster] + draw(30, HIDDEN, seed=2)
    y = scales[cluster] * x
    torch.testing.assert_close(local_parts(x, y, neighbours=10, ridge=0.0), y - x)
    assert fitted("diagonal", x, y)[1].update_error > 0.1
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    y = y + draw(30, HIDDEN, seed=3)
    shuffled = local_parts(x[order], y[order], neighbours=10)
    torch.testing.assert_close(shuffled, local_parts(x, y, neighbours=10)[order])


def test_rank_correlations_are_scipys_and_the_partial_one_that_of_three() -> None:
    error, size = draw(60), draw(60, seed=1)
    perturbation = (error + size + draw(60, seed=2)).round(decimals=0)
    assert rank_correlation(error, perturbation) == pytest.approx(spearmanr(error, perturbation).statistic)
    ab, ac, bc = (spearmanr(*pair).statistic for pair in ((error, perturbation), (error, size), (perturbation, size)))
    expected = (ab - ac * bc) / math.sqrt((1 - ac**2) * (1 - bc**2))
    assert rank_correlation(error, perturbation, size) == pytest.approx(expected)
    assert math.isnan(rank_correlation(error, torch.ones(60)))
    assert math.isnan(rank_correlation(error, perturbation, perturbation))


def test_half_precision_states_are_summed_in_double() -> None:
    x, y = draw(30, HIDDEN).bfloat16(), draw(30, HIDDEN, seed=1).bfloat16()
    tokenwise, found = fitted("diagonal", x, y)
    assert tokenwise(x).dtype == torch.bfloat16
    again, exact = fitted("diagonal", x.double(), y.double())
    assert found == exact
    assert torch.equal(tokenwise.matrix, again.matrix)


def test_what_does_not_belong_together_is_named() -> None:
    fit = TokenwiseFit()
    with pytest.raises(UserError, match="no states were given"):
        fit.result()
    with pytest.raises(UserError, match=r"states of shape \[2, 3\] and \[3, 2\]"):
        fit.update(torch.zeros(2, 3), torch.zeros(3, 2))
    fit.update(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(UserError, match="states of 4 dimensions follow some of 3"):
        fit.update(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(UserError, match="fewer than 5 others"):
        local_parts(draw(5, 2), draw(5, 2), neighbours=5)
    with pytest.raises(UserError, match="'full' is no class of maps; known: diagonal, orthogonal, low-rank"):
        best_map(torch.eye(2), torch.eye(2), "full")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="rank=0 leaves no map"):
        best_map(torch.eye(2), torch.eye(2), "low-rank", rank=0)
    with pytest.raises(UserError, match="2 values have no rank correlation"):
        rank_correlation(torch.ones(2), torch.ones(2))
