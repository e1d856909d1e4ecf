from __future__ import annotations

import pytest
import torch

from assay.claims.properties import properties
from assay.models import Decoder
from assay.models.initialization import initialize
from assay.training.config import RunConfig

CONFIG = RunConfig.parse({"model": {"depth": 1, "hidden_size": 8, "num_heads": 2, "vocab_size": 11}, "seed": 3})


def measure(model: Decoder, config: RunConfig = CONFIG) -> dict[str, float]:
    return properties.build("weight-norm-growth", model=model, ids=torch.zeros(1, 2, dtype=torch.long), config=config)


def model() -> Decoder:
    made = Decoder(CONFIG.model)
    initialize(made, 3, CONFIG.model.init_std)
    return made


def test_a_fresh_model_has_not_grown() -> None:
    assert measure(model()) == {"growth": pytest.approx(1, abs=1e-6), "deviation": pytest.approx(0, abs=1e-6)}
    other = measure(model(), CONFIG.with_seed(4))
    assert other["deviation"] > 1e-3


def test_growth_is_the_geometric_mean_and_deviation_the_largest() -> None:
    """7 matrices; embeddings, heads and gains do not count."""
    grown = model()
    with torch.no_grad():
        grown.layers[0].mixer.branch.query.weight *= 4
        grown.layers[0].mlp.branch.down.weight *= 0.25
        grown.layers[0].mlp.branch.up.weight *= 2
        grown.embedding.weight *= 10
        grown.head.projection.weight *= 10
        grown.final_norm.weight *= 10
    assert measure(grown) == {"growth": pytest.approx(2 ** (1 / 7)), "deviation": pytest.approx(3)}
