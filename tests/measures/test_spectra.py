import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from assay.errors import UserError
from assay.measures.spectra import (
    effective_rank,
    hill_exponent,
    low_rankness,
    matrix_entropy,
    matrix_nuclear_norm,
    nuclear_norm,
    outliers,
    power_law,
    singular_values,
    stable_rank,
    unit_rows,
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pareto(count, alpha, seed=0):
    """The quantiles of density ∝ x^−alpha from 1 on: no noise beyond the grid's."""
    ranks = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (1 - ranks) ** (-1 / (alpha - 1))


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 1, 1, 1], 4), ([3, 1], 1.754765), ([4, 2, 1, 1], 3.363586), ([7, 0, 0], 1)]
)
def test_effective_rank_of_worked_numbers(values, expected):
    assert effective_rank(torch.tensor(values, dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 10), st.integers(0, 100))
def test_ranks_are_between_one_and_the_rank_and_do_not_see_scale(rows, columns, scale, seed):
    matrix = normal(rows, columns, seed=seed)
    singular = singular_values(matrix)
    frobenius = matrix.norm()
    assert frobenius * (1 - 1e-9) <= nuclear_norm(singular) <= math.sqrt(min(rows, columns)) * frobenius * (1 + 1e-9)
    for rank in (effective_rank, stable_rank):
        assert 1 - 1e-9 <= rank(singular) <= min(rows, columns) + 1e-9
        assert rank(singular_values(scale * matrix)).item() == pytest.approx(rank(singular).item())


def test_a_batch_is_its_matrices():
    batch = normal(3, 5, 4)
    singular = singular_values(batch)
    for measure in (nuclear_norm, effective_rank, stable_rank, low_rankness):
        assert torch.equal(measure(singular), torch.stack([measure(one) for one in singular]))
    for measure in (matrix_entropy, matrix_nuclear_norm):
        torch.testing.assert_close(measure(batch), torch.stack([measure(one) for one in batch]))


def test_a_zero_matrix_has_no_rank():
    assert effective_rank(torch.zeros(3)).isnan()
    assert stable_rank(torch.zeros(3)).isnan()


def test_low_rankness_counts_the_values_that_hold_the_energy():
    singular = torch.tensor([3.0, 1.0, 1.0, 1.0])  # squares 9, 1, 1, 1 of 12
    assert low_rankness(singular, 0.75) == 0.25
    assert low_rankness(singular, 0.76) == 0.5
    assert low_rankness(singular) == 0.75
    assert low_rankness(singular, 1.0) == 1.0


def test_the_tail_of_an_exact_power_law_is_found():
    for alpha in (2.0, 3.5, 6.0):
        fit = power_law(pareto(4000, alpha))
        assert fit.alpha == pytest.approx(alpha, rel=0.02)
        assert fit.distance < 0.01
        assert hill_exponent(pareto(4000, alpha), 2000) == pytest.approx(alpha, rel=0.02)


def test_the_tail_begins_where_the_bulk_ends():
    bulk = torch.linspace(0.01, 1, 500, dtype=torch.float64)
    fit = power_law(torch.cat([bulk, pareto(500, 2.5)]))
    assert 0.95 <= fit.minimum <= 1.1
    assert fit.alpha == pytest.approx(2.5, rel=0.05)


def test_the_exponent_and_distance_are_those_of_scipy():
    values = normal(300, seed=1).exp()
    fit = power_law(values)
    tail = np.sort(values[values >= fit.minimum].numpy())
    assert len(tail) == fit.count
    shape, _, _ = stats.pareto.fit(tail, floc=0, fscale=fit.minimum)
    assert fit.alpha == pytest.approx(shape + 1, rel=1e-9)
    model = stats.pareto(shape, scale=fit.minimum).cdf(tail)
    assert fit.distance == pytest.approx(np.abs(model - np.arange(len(tail)) / len(tail)).max(), rel=1e-9)


def test_no_other_start_of_the_tail_fits_better():
    values = normal(60, seed=2).exp().sort().values
    fit = power_law(values)
    for start in values[:-1]:
        tail = values[values >= start].numpy()
        shape = len(tail) / np.log(tail / tail[0]).sum()
        gap = np.abs(stats.pareto(shape, scale=tail[0]).cdf(tail) - np.arange(len(tail)) / len(tail)).max()
        assert gap >= fit.distance - 1e-12


def test_exponents_do_not_see_scale():
    values = normal(200, seed=3).exp()
    assert power_law(7 * values).alpha == pytest.approx(power_law(values).alpha)
    assert hill_exponent(7 * values) == pytest.approx(hill_exponent(values))


def test_hill_of_a_worked_number():
    values = torch.tensor([1.0, math.e, math.e**2, math.e**3])  # 1 + 2 / (2 + 1)
    assert hill_exponent(values, 2) == pytest.approx(5 / 3)
    assert hill_exponent(values) == hill_exponent(values, 2)


def test_noise_passes_the_edge_about_once_in_a_hundred_matrices():
    passed = sum(outliers(singular_values(normal(60, 40, seed=seed)), 60, 40).count > 0 for seed in range(400))
    assert passed <= stats.binom(400, 0.015).ppf(0.999)


def test_planted_outliers_are_counted_and_do_not_move_the_edge():
    noise = 0.3 * normal(200, 100)
    columns = torch.linalg.qr(normal(100, 3, seed=1)).Q
    rows = torch.linalg.qr(normal(200, 3, seed=2)).Q
    plain, planted = (outliers(singular_values(m), 200, 100) for m in (noise, noise + 30 * rows @ columns.T))
    assert (plain.count, planted.count) == (0, 3)
    assert plain.sigma == pytest.approx(0.3, rel=0.02)
    assert planted.edge == pytest.approx(plain.edge, rel=0.05)
    assert outliers(singular_values(noise.T), 100, 200).edge == pytest.approx(plain.edge)


@pytest.mark.parametrize(("rows", "columns"), [(500, 500), (800, 200), (600, 30)])
def test_sigma_is_that_of_the_entries(rows, columns):
    assert outliers(singular_values(normal(rows, columns)), rows, columns).sigma == pytest.approx(1, rel=0.02)


def test_the_matrix_nuclear_norm_of_a_worked_number():
    states = torch.tensor([[1.0, 0, 0], [0, 2, 0], [-1, -2, 0]], dtype=torch.float64)
    assert matrix_nuclear_norm(states).item() == pytest.approx(0.812362, abs=1e-6)
    assert (nuclear_norm(singular_values(unit_rows(states))) / 3).item() == pytest.approx(0.804738, abs=1e-6)


def test_the_matrix_nuclear_norm_bounds_the_true_one():
    states = normal(64, 20)
    true = torch.linalg.matrix_norm(unit_rows(states), "nuc") / 64
    assert true < matrix_nuclear_norm(states) <= math.sqrt(20 * 64) / 64


def test_the_matrix_nuclear_norm_is_exact_for_orthogonal_columns():
    axes = torch.eye(3, dtype=torch.float64)
    states = torch.cat([axes, -axes, 2 * axes, -2 * axes])
    true = torch.linalg.matrix_norm(unit_rows(states), "nuc") / len(states)
    assert matrix_nuclear_norm(states).item() == pytest.approx(true.item())


def test_what_token_measures_do_not_see():
    states = normal(30, 12)
    moved = 2.5 * states[torch.randperm(30)] + normal(12, seed=1)
    for measure in (matrix_entropy, matrix_nuclear_norm):
        assert measure(moved).item() == pytest.approx(measure(states).item())
    states[:, 0] *= 9
    turned = states @ torch.linalg.qr(normal(12, 12, seed=2)).Q
    assert matrix_entropy(turned).item() == pytest.approx(matrix_entropy(states).item())
    assert abs(matrix_nuclear_norm(turned) - matrix_nuclear_norm(states)) > 1e-3


def test_matrix_entropy_is_that_of_the_covariance():
    for time in (9, 40):
        states = normal(time, 16)
        centred = states.numpy() - states.numpy().mean(0)
        rows = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        eigenvalues = np.linalg.eigvalsh(rows.T @ rows / time)
        expected = stats.entropy(eigenvalues.clip(0)) / np.log(16)
        assert matrix_entropy(states).item() == pytest.approx(expected)


def test_one_direction_has_no_entropy():
    assert matrix_entropy(torch.outer(normal(9), normal(5, seed=1))).item() == pytest.approx(0, abs=1e-6)
    assert matrix_entropy(torch.cat([torch.eye(4), -torch.eye(4)])).item() == pytest.approx(1)
    assert matrix_entropy(torch.ones(3, 4)).isnan()
    assert matrix_nuclear_norm(torch.ones(1, 4)).isnan()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: singular_values(torch.ones(3)), "has no singular values"),
        (lambda: singular_values(torch.full((2, 2), torch.nan)), "not finite"),
        (lambda: low_rankness(torch.ones(3), 0), "not a share"),
        (lambda: power_law(torch.ones(5)), "two different positive"),
        (lambda: power_law(torch.ones(5, 5)), "vector"),
        (lambda: hill_exponent(torch.arange(1.0, 4), 3), "must be 1 to 2"),
        (lambda: hill_exponent(torch.tensor([1.0, 2, 2, 2]), 2), "are equal"),
        (lambda: outliers(torch.ones(3), 4, 5), "there must be 4"),
    ],
)
def test_what_cannot_be_measured_is_said(call, reason):
    with pytest.raises(UserError, match=reason):
        call()
