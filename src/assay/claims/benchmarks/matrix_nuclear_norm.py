"""Matrix nuclear norm and matrix entropy of one text's random token states, and the true nuclear norm."""

from __future__ import annotations

from collections.abc import Callable

import torch

from assay.claims.benchmarks import benchmarks
from assay.measures.spectra import matrix_entropy, matrix_nuclear_norm, singular_values, unit_rows


@benchmarks.register("matrix-nuclear-norm")
def matrix_nuclear_norms(*, tokens: int = 1024, hidden_size: int = 2048) -> dict[str, Callable[[], object]]:
    """``mnn``, ``entropy`` and ``exact``, in float32."""
    states = torch.randn(tokens, hidden_size, generator=torch.Generator().manual_seed(0))
    return {
        "mnn": lambda: matrix_nuclear_norm(states),
        "entropy": lambda: matrix_entropy(states),
        "exact": lambda: singular_values(unit_rows(states)).sum(),
    }
