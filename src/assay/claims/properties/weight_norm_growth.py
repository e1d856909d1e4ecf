"""Growth of weights: the Frobenius norm of each hidden matrix over the one that it started with.

    growth = geometric mean over the matrices of ‖W‖ / ‖W(0)‖,    deviation = largest |‖W‖ / ‖W(0)‖ − 1|

W(0) is drawn again from the run's seed. Where the loss does not depend on ‖W‖, a learning rate η works like
η / growth² with gradient descent, and like η / growth where a step does not depend on the gradient's size.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from assay.claims.properties import properties
from assay.models import Decoder
from assay.models.initialization import initialize
from assay.optim import parameter_groups
from assay.training.config import RunConfig


@properties.register("weight-norm-growth")
def weight_norm_growth(model: Decoder, config: RunConfig) -> dict[str, float]:
    """``growth`` and ``deviation``."""
    fresh = Decoder(model.config)
    initialize(fresh, config.seed, model.config.init_std)
    ratios = _norms(model) / _norms(fresh)
    return {"growth": ratios.log().mean().exp().item(), "deviation": (ratios - 1).abs().max().item()}


def _norms(model: Decoder) -> Float[Tensor, " matrices"]:
    groups = [group for group in parameter_groups(model) if group["role"] == "matrix"]
    return torch.stack([matrix.detach().norm().cpu() for group in groups for matrix in group["params"]])
