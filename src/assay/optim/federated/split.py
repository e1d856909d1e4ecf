"""Shares of a labelled data set for clients that see different classes.

Each class is shared out among the clients by proportions from Dirichlet(α, …, α): the smaller α, the fewer clients
have most of a class; for large α all have the same mixture. Hsu, Qi, Brown, 2019, arXiv:1909.06335.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from assay.errors import UserError


def dirichlet_split(
    labels: Int[Tensor, " n"], clients: int, *, concentration: float, seed: int = 0
) -> list[Int[Tensor, " share"]]:
    """Indices of each client, every sample with one of them and every client with a sample at least.

    ``concentration`` is α. A client that got nothing takes a sample of the largest one. Raises ``UserError`` for
    fewer samples than clients, no clients, and a concentration that is not positive.
    """
    if not 1 <= clients <= len(labels):
        raise UserError(f"clients={clients} for {len(labels)} samples: between 1 and the number of samples")
    if not concentration > 0:
        raise UserError(f"concentration={concentration}: it should be positive")
    rng = np.random.default_rng(seed)
    shares: list[list[int]] = [[] for _ in range(clients)]
    for label in labels.unique().tolist():
        members = rng.permutation((labels == label).nonzero()[:, 0].numpy(force=True))
        proportions = rng.dirichlet([concentration] * clients)
        cuts = (proportions.cumsum()[:-1] * len(members)).round().astype(int)
        for share, part in zip(shares, np.split(members, cuts), strict=True):
            share += part.tolist()
    for share in shares:
        if not share:
            share.append(max(shares, key=len).pop())
    return [torch.tensor(sorted(share), device=labels.device) for share in shares]
