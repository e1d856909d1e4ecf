"""α-BN: batch norm whose statistics at test time mix stored ones with those of the test batch, and Core.

    μ  = α μ_source  + (1 − α) μ_batch
    σ² = α σ²_source + (1 − α) σ²_batch
    y  = γ ⊙ (x − μ) / √(σ² + ε) + β

with one α (``source_weight``) in all layers: α = 1 is the usual inference, α = 0 normalises by the test batch alone.
Variances are biased, and the moments are mixed as they stand: σ² is not the variance of the mixture, which would also
hold α (1 − α) (μ_source − μ_batch)². The stored statistics are never overwritten.

Core adapts γ and β on the same stream, one optimizer step per batch, to lower the correlation between the predicted
probabilities of different classes. With P = softmax(logits) and G = Pᵀ P

    loss = Σ_{i≠j} G_ij / Σ_ij G_ij                  normalization = "samples"
    loss = 1/K Σ_i Σ_{j≠i} G_ij / Σ_j G_ij           normalization = "classes"

The abstract says "pairwise class correlation"; how the paper normalises it is not known here, so it is a choice by
name. Rows of P sum to 1, hence Σ G = B and the first is 1 − mean ‖p‖², the mean Gini impurity of single predictions;
only the second looks at pairs of classes.

You, Li, Zhao, 2021, arXiv:2110.04065.
"""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from assay.errors import UserError
from assay.nn.norm import norms

Normalization = Literal["samples", "classes"]
"""What the correlations of Core's loss are divided by: their whole sum, or each class's own."""


def batch_statistics(x: Tensor, feature_dim: int = -1) -> tuple[Float[Tensor, " hidden"], Float[Tensor, " hidden"]]:
    """Mean and biased variance of each feature over all other dimensions."""
    others = [dim for dim in range(x.ndim) if dim != feature_dim % x.ndim]
    variance, mean = torch.var_mean(x, dim=others, correction=0)
    return mean, variance


def mixed_batch_norm(
    x: Tensor,
    source_mean: Float[Tensor, " hidden"],
    source_variance: Float[Tensor, " hidden"],
    weight: Float[Tensor, " hidden"] | None,
    bias: Float[Tensor, " hidden"] | None,
    *,
    source_weight: float,
    eps: float,
    feature_dim: int = -1,
) -> Tensor:
    """γ (x − μ) / √(σ² + eps) + β with μ, σ² the mix of source and batch; gradients flow through the batch's part.

    Statistics are taken in float32 at least.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean, variance = batch_statistics(wide, feature_dim)
    mean = torch.lerp(mean, source_mean.to(mean.dtype), source_weight)
    scale = torch.rsqrt(torch.lerp(variance, source_variance.to(mean.dtype), source_weight) + eps)
    if weight is not None:
        scale = scale * weight
    shape = [1] * x.ndim
    shape[feature_dim] = -1
    y = (wide - mean.view(shape)) * scale.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    return y.to(x.dtype)


@norms.register("alpha-bn")
class AlphaBN(nn.Module):
    """Batch norm over the last dimension: by the batch in training, by the mix with ``source_weight`` in evaluation.

    Training also keeps the source statistics: ``running_mean`` and ``running_var`` move by ``momentum`` towards those
    of each batch (the unbiased variance, as torch has it); before any training they are 0 and 1.

    In a decoder of text the batch is all tokens of all sequences, so that a token's output depends a little on later
    ones, in evaluation too unless ``source_weight`` is 1; its bits per byte are to be read with that in mind.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        hidden_size: int,
        *,
        source_weight: Annotated[float, Field(ge=0, le=1)] = 0.9,
        momentum: Annotated[float, Field(ge=0, le=1)] = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.source_weight, self.momentum, self.eps = source_weight, momentum, eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.register_buffer("running_mean", torch.zeros(hidden_size))
        self.register_buffer("running_var", torch.ones(hidden_size))

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        if self.training:
            self._follow(x.detach())
        return mixed_batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            source_weight=0.0 if self.training else self.source_weight,
            eps=self.eps,
        )

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        mean, variance = batch_statistics(x.to(self.running_mean.dtype))
        count = x.numel() // x.shape[-1]
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)


class AlphaBatchNorm(nn.Module):
    """α-BN around a trained ``nn.BatchNorm1d``, ``2d`` or ``3d``, whose parameters and statistics it uses.

    It mixes in training mode as in evaluation mode, and writes nothing to the stored statistics.
    """

    def __init__(self, norm: _BatchNorm, source_weight: float) -> None:
        super().__init__()
        self.norm, self.source_weight = norm, source_weight

    def forward(self, x: Float[Tensor, "batch hidden *space"]) -> Float[Tensor, "batch hidden *space"]:
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return mixed_batch_norm(
            x,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            source_weight=self.source_weight,
            eps=norm.eps,
            feature_dim=1,
        )


def alpha_bn(model: nn.Module, source_weight: float = 0.9) -> nn.Module:
    """A copy of ``model`` in which α-BN stands wherever a batch norm (or α-BN) did; ``model`` is not changed.

    Raises ``UserError`` if ``source_weight`` is not between 0 and 1, if there is no batch norm, and if one of them
    keeps no statistics that could be mixed.
    """
    if not 0 <= source_weight <= 1:
        raise UserError(f"source_weight={source_weight} is no share; it has to lie between 0 and 1")
    converted: dict[int, AlphaBatchNorm] = {}

    def convert(module: nn.Module, path: str) -> nn.Module:
        if isinstance(module, AlphaBatchNorm):
            module = module.norm
        if isinstance(module, _BatchNorm):
            if module.running_mean is None:
                raise UserError(f"batch norm {path or 'itself'!r} keeps no statistics (track_running_stats=False)")
            return converted.setdefault(id(module), AlphaBatchNorm(module, source_weight))
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = convert(child, f"{path}.{name}".lstrip("."))
        return module

    model = convert(copy.deepcopy(model), "")
    if not converted:
        raise UserError("the model has no batch norm; α-BN mixes the statistics of nn.BatchNorm1d, 2d and 3d")
    return model


def class_correlation(
    logits: Float[Tensor, "batch classes"], normalization: Normalization = "classes"
) -> Float[Tensor, ""]:
    """Core's loss: the share of Pᵀ P that lies off its diagonal, in all or as the mean over its rows.

    0 for predictions that are certain, 1 − 1/K for uniform ones.
    """
    probabilities = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    pairs = probabilities.T @ probabilities
    if normalization == "samples":
        return 1 - pairs.trace() / len(logits)
    rows = pairs.sum(-1).clamp_min(torch.finfo(pairs.dtype).tiny)
    return ((rows - pairs.diagonal()) / rows).mean()


def affine_parameters(model: nn.Module) -> list[nn.Parameter]:
    """γ and β of the α-BN layers, which Core adapts. Raises ``UserError`` if there are none."""
    layers = [module.norm for module in model.modules() if isinstance(module, AlphaBatchNorm)]
    parameters = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    if not parameters:
        raise UserError("nothing to adapt: the model has no α-BN layer with a gain; convert it by alpha_bn first")
    return parameters


def core_step(
    model: nn.Module,
    inputs: Tensor,
    optimizer: torch.optim.Optimizer,
    normalization: Normalization = "classes",
) -> Float[Tensor, "batch classes"]:
    """Logits of a test batch, then one step of ``optimizer`` on Core's loss of these same logits.

    No gradient is kept, and none is taken for parameters that the optimizer does not hold.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    logits = model(inputs)
    loss = class_correlation(logits, normalization)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return logits.detach()
