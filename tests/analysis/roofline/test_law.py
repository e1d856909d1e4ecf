from __future__ import annotations

import numpy as np
import pytest

from assay.analysis.roofline.law import LossLaw, quadratic
from assay.errors import UserError

NAMES = ("depth", "hidden_size", "kv_size", "expansion")


def runs(count: int, seed: int = 0) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {name: list(rng.uniform(1, 16, count)) for name in NAMES}


def test_losses_of_the_laws_own_form_are_recovered() -> None:
    rng = np.random.default_rng(1)
    seen, new = runs(40), runs(20, seed=2)
    coefficients = rng.normal(size=14)

    def truth(table: dict[str, list[float]]) -> np.ndarray:
        return 3 + quadratic(np.log(np.stack(list(table.values()), 1))) @ coefficients

    law = LossLaw.fit(seen, list(truth(seen)))
    assert np.abs(law.predict(new) - truth(new)).max() < 1e-6
    assert law.r2 == pytest.approx(1)
    assert law.rank == 1


def test_it_is_the_ridge_regression_of_scikit_learn() -> None:
    """Coefficients at the ridge that was chosen, and each run's prediction without it."""
    pytest.importorskip("sklearn")
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import LeaveOneOut, cross_val_predict
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    rng = np.random.default_rng(3)
    table, new = runs(18), runs(5, seed=4)
    losses = 4 - 0.2 * np.log(table["depth"]) - 0.3 * np.log(table["hidden_size"]) + rng.normal(0, 0.1, 18)
    law = LossLaw.fit(table, list(losses))
    scaler = StandardScaler().fit(np.log(np.stack(list(table.values()), 1)))
    polynomial = PolynomialFeatures(2, include_bias=False)

    def terms(of: dict[str, list[float]]) -> np.ndarray:
        return polynomial.fit_transform(scaler.transform(np.log(np.stack(list(of.values()), 1))))

    peer = Ridge(alpha=law.ridge).fit(terms(table), losses)
    np.testing.assert_allclose(law.predict(new), peer.predict(terms(new)), atol=1e-9)
    held_out = cross_val_predict(Ridge(alpha=law.ridge), terms(table), losses, cv=LeaveOneOut())
    assert law.r2 == pytest.approx(1 - ((held_out - losses) ** 2).sum() / ((losses - losses.mean()) ** 2).sum())
    assert law.ridge > 1e-12


def test_a_size_that_never_varied_is_left_out() -> None:
    table = runs(10) | {"expansion": [4.0] * 10}
    law = LossLaw.fit(table, list(np.log(table["depth"])))
    assert law.features == NAMES[:3]


def test_too_little_to_learn_from() -> None:
    with pytest.raises(UserError, match="6 runs of different sizes; there are 5"):
        LossLaw.fit(runs(5), [1.0] * 5)
    with pytest.raises(UserError, match="6 runs of different sizes"):
        LossLaw.fit({"depth": [4.0] * 8}, [1.0] * 8)
    with pytest.raises(UserError, match="losses are finite"):
        LossLaw.fit(runs(8), [float("nan")] * 8)
