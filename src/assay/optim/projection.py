"""Projection of gradients to a low rank.

    G = U Σ Vᵀ,    B = V[:, :r],    R = G B,    back(R) = R Bᵀ

G has at least as many rows as columns; one that has fewer is transposed first, so B always spans directions of the
shorter side.

Zhao, Zhang, Chen, Wang, Anandkumar, Tian, 2024, arXiv:2403.03507.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def as_tall(tensor: Tensor) -> Float[Tensor, "long short"]:
    """A parameter's gradient as a matrix with the longer side first; axes from the second on are one."""
    matrix = tensor.flatten(1)
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT


def as_parameter(matrix: Float[Tensor, "long short"], parameter: Tensor) -> Tensor:
    """The inverse of ``as_tall``, for a matrix of that parameter."""
    rows = len(parameter)
    return (matrix if rows >= parameter[0].numel() else matrix.mT).reshape(parameter.shape)


def leading_directions(gradient: Tensor, rank: int) -> Float[Tensor, "short rank"]:
    """The singular vectors, on the shorter side, of the ``rank`` largest singular values; all, if there are fewer.

    They are eigenvectors of GᵀG in float64, which is quicker than a decomposition of G in float32 and no less exact.
    """
    tall = as_tall(gradient.cpu() if gradient.device.type == "mps" else gradient).double()  # mps has no float64
    _, vectors = torch.linalg.eigh(tall.mT @ tall)
    return vectors.flip(-1)[:, :rank].to(gradient).contiguous()
