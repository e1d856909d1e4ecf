from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.errors import UserError
from assay.optim.federated import dirichlet_split

LABELS = torch.arange(1000) % 10


def mixtures(concentration: float, seed: int = 0) -> Tensor:
    """By client the share of each class."""
    shares = dirichlet_split(LABELS, 5, concentration=concentration, seed=seed)
    counts = torch.stack([LABELS[share].bincount(minlength=10) for share in shares]).double()
    return counts / counts.sum(0)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 60), clients=st.integers(1, 12), seed=st.integers(0, 99), concentration=st.floats(0.01, 9)
)
def test_every_sample_has_one_client_and_every_client_a_sample(
    count: int, clients: int, seed: int, concentration: float
) -> None:
    labels = torch.arange(max(count, clients)) % 4
    shares = dirichlet_split(labels, clients, concentration=concentration, seed=seed)
    assert len(shares) == clients
    assert torch.cat(shares).sort().values.tolist() == list(range(len(labels)))
    assert all(len(share) for share in shares)


def test_small_concentrations_give_a_class_to_one_client_and_large_ones_to_all() -> None:
    assert mixtures(1e-3).amax(0).min() > 0.95
    assert (mixtures(1e5) - 0.2).abs().max() < 0.02


def test_shares_have_the_variance_of_the_distribution() -> None:
    """Dirichlet(α, ..., α) of m parts: (1/m)(1 − 1/m) / (mα + 1)."""
    shares = torch.cat([mixtures(0.7, seed).flatten() for seed in range(60)])
    assert shares.var().item() == pytest.approx(0.2 * 0.8 / (5 * 0.7 + 1), rel=0.1)


def test_the_seed_decides() -> None:
    one, same, other = (dirichlet_split(LABELS, 5, concentration=0.5, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert [len(a) for a in one] != [len(a) for a in other]


def test_mistakes() -> None:
    with pytest.raises(UserError, match="clients=0 for 1000 samples"):
        dirichlet_split(LABELS, 0, concentration=1)
    with pytest.raises(UserError, match="clients=3 for 2 samples: between 1 and"):
        dirichlet_split(LABELS[:2], 3, concentration=1)
    with pytest.raises(UserError, match="concentration=0: it should be positive"):
        dirichlet_split(LABELS, 2, concentration=0)
