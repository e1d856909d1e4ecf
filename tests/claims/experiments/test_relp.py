from __future__ import annotations

import pytest
import torch

from assay.analysis.relp import RelP
from assay.claims.experiments.relp import correlations_of


def test_correlations_are_named_by_method_and_site() -> None:
    truth = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 4.0]])
    effects = {"activation": {"mlp": truth}, "attribution": {"mlp": -truth}, "relp": {"mlp": truth.square()}}
    found = correlations_of(RelP(1, 1.0, -1.0, effects))
    assert found == pytest.approx(
        {"attribution.mlp": -1, "attribution.mlp.rank": -1, "relp.mlp": 25 / (5 * 129) ** 0.5, "relp.mlp.rank": 1}
    )
