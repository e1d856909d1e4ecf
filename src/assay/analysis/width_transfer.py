"""Whether networks of different widths have come to the same sublayer gains: their largest singular values compared.

    match(a, b)_W = σ₁(W_b) / σ₁(W_a)    for each matrix W that both have by name

At the end of training the ratios are 1 where rate and decay transfer from the one width to the other. Comparing early
tells nothing: before 1 / (η λ) steps the weights still carry their start.

Fan, Liu, Zhao, Yuan, Gu, 2025, arXiv:2510.15262.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from assay.errors import UserError
from assay.measures.spectra import singular_values
from assay.optim.groups import parameter_groups


def top_singular_values(model: nn.Module) -> dict[str, float]:
    """The largest one of each weight between hidden layers, by name, those of kernels flattened to matrices."""
    matrices = {id(p) for group in parameter_groups(model) if group["role"] == "matrix" for p in group["params"]}
    return {
        name: singular_values(p.detach().flatten(1))[0].item()
        for name, p in model.named_parameters()
        if id(p) in matrices
    }


def match(proxy: Mapping[str, float], target: Mapping[str, float]) -> dict[str, float]:
    """Target over proxy by name. Raises ``UserError`` if they have no matrix in common."""
    common = {name: target[name] / proxy[name] for name in proxy if name in target}
    if not common:
        raise UserError("the two networks have no matrix of the same name; compare widths of one architecture")
    return common


def drift(proxy: Mapping[str, float], target: Mapping[str, float]) -> float:
    """The mean over matrices of ln(σ₁ of the target / σ₁ of the proxy). Raises ``UserError`` as ``match`` does."""
    ratios = match(proxy, target).values()
    return sum(map(math.log, ratios)) / len(ratios)
