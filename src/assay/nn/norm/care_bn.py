"""CaRe-BN: batch norm whose moving statistics follow the batch by a gain that is their confidence.

Per feature, with the batch's mean μ and biased variance s² over all values, N samples in the batch, moving mean m and
variance v, and Δ_m = μ − m, Δ_v = s² − v:

    R_m = s² / (N − 1)                       R_v = 2 s⁴ / (N − 1)            sampling noise of μ and of s²
    P_m ← ρ P_m + (1 − ρ) Δ_m²               P_v ← ρ P_v + (1 − ρ) Δ_v²      how far off m and v have been
    m ← m + P_m / (P_m + R_m) Δ_m            v ← v + P_v / (P_v + R_v) Δ_v

A layer works in one of three ways. *Update* (``train()``): normalise by the batch and move m, v as above. *Inference*
(``eval()``): normalise by m, v, which folds into the linear layer before. *Re-calibration* (``recalibrate``): with
fixed weights, run many batches of replayed data one after another; each layer normalises by the statistics pooled
over the batches so far, so that deeper layers see what they will see later, and keeps those of all batches as m, v.

The first dimension is the samples; values of one sample (spike steps, positions) are not independent and do not count
in N. Official code writes 255 for N − 1 whatever the batch.

Xu, Shi, Dong, Huang, Yu, 2025, arXiv:2509.23791.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from assay.errors import UserError
from assay.nn.norm import norms


def confident_update(
    moving: Float[Tensor, " hidden"],
    error: Float[Tensor, " hidden"],
    measured: Float[Tensor, " hidden"],
    noise: Float[Tensor, " hidden"],
    rho: float,
) -> tuple[Float[Tensor, " hidden"], Float[Tensor, " hidden"]]:
    """The next moving statistic and the next mean squared error P: gain P / (P + noise), 0 where both are 0."""
    delta = measured - moving
    error = rho * error + (1 - rho) * delta.square()
    gain = error / (error + noise).clamp_min(torch.finfo(error.dtype).tiny)
    return moving + gain * delta, error


class PooledStatistics:
    """Mean and biased variance of everything added so far."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.variance = torch.zeros(())

    def add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Pool in ``count`` values, by the exact rule for two groups."""
        share = count / (self.count + count)
        self.variance = (1 - share) * self.variance + share * variance + share * (1 - share) * (mean - self.mean) ** 2
        self.mean = (1 - share) * self.mean + share * mean
        self.count += count


@norms.register("care-bn")
class CaReBN(nn.Module):
    """Features are the last dimension, samples the first; γ and β start at 1 and 0.

    Before spiking neurons that fire at ``threshold``, give it: γ and β then start at half of it, which keeps the
    neurons firing. ``moving_mean``, ``moving_var`` and the two P are buffers; an agent's target network averages the
    first two along with the parameters.

    In a decoder of text, training normalises over all tokens of the batch, evaluation by the moving statistics.
    """

    moving_mean: Tensor
    moving_var: Tensor
    mean_error: Tensor
    var_error: Tensor

    def __init__(
        self,
        hidden_size: int,
        *,
        rho: Annotated[float, Field(ge=0, lt=1)] = 0.8,
        threshold: Annotated[float, Field(gt=0)] | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.rho, self.eps = rho, eps
        gain, bias = (1.0, 0.0) if threshold is None else (threshold / 2, threshold / 2)
        self.weight = nn.Parameter(torch.full((hidden_size,), gain))
        self.bias = nn.Parameter(torch.full((hidden_size,), bias))
        self.register_buffer("moving_mean", torch.zeros(hidden_size))
        self.register_buffer("moving_var", torch.ones(hidden_size))
        self.register_buffer("mean_error", torch.zeros(hidden_size))
        self.register_buffer("var_error", torch.zeros(hidden_size))
        self.pool: PooledStatistics | None = None

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.pool is None and not self.training:
            return self._normalize(wide, self.moving_mean, self.moving_var).to(x.dtype)
        rows = wide.reshape(-1, x.shape[-1])
        variance, mean = torch.var_mean(rows, dim=0, correction=0)
        if self.pool is not None:
            self.pool.add(len(rows), mean, variance)
            mean, variance = self.pool.mean, self.pool.variance
        else:
            self._update(mean.detach(), variance.detach(), samples=len(x) if x.ndim > 1 else 1)
        return self._normalize(wide, mean, variance).to(x.dtype)

    def _normalize(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return (x - mean) * (self.weight * torch.rsqrt(variance + self.eps)) + self.bias

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, samples: int) -> None:
        freedom = max(samples - 1, 1)
        moved, error = confident_update(self.moving_mean, self.mean_error, mean, variance / freedom, self.rho)
        self.moving_mean.copy_(moved)
        self.mean_error.copy_(error)
        noise = 2 * variance.square() / freedom
        moved, error = confident_update(self.moving_var, self.var_error, variance, noise, self.rho)
        self.moving_var.copy_(moved)
        self.var_error.copy_(error)


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any]) -> None:
    """Replace the moving statistics of all CaRe-BN layers of ``model`` by those of ``batches``, run one by one.

    Everything else is in evaluation mode meanwhile; weights, P and the modes are as before afterwards. The paper
    takes 100 batches of 256 before each evaluation. Raises ``UserError`` if there is no such layer, or no batch.
    """
    layers = [module for module in model.modules() if isinstance(module, CaReBN)]
    if not layers:
        raise UserError("nothing to re-calibrate: the model has no CaRe-BN layer")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    pools = [PooledStatistics() for _ in layers]
    for layer, pool in zip(layers, pools, strict=True):
        layer.pool = pool
    try:
        for batch in batches:
            model(batch)
    finally:
        for layer in layers:
            layer.pool = None
        for module, mode in modes.items():
            module.training = mode
    if not any(pool.count for pool in pools):
        raise UserError("nothing to re-calibrate on: there is no batch")
    for layer, pool in zip(layers, pools, strict=True):
        if pool.count:
            layer.moving_mean.copy_(pool.mean)
            layer.moving_var.copy_(pool.variance)


@torch.no_grad()
def fold(linear: nn.Linear, norm: CaReBN) -> nn.Linear:
    """One linear layer equal to ``linear`` followed by ``norm`` at inference.

        W′ = diag(g) W,    b′ = g ⊙ (b − m) + β,    g = γ / √(v + ε)

    Raises ``UserError`` if their widths differ.
    """
    if linear.out_features != norm.weight.numel():
        raise UserError(f"a norm of {norm.weight.numel()} features does not follow {linear.out_features} outputs")
    gain = norm.weight * torch.rsqrt(norm.moving_var + norm.eps)
    before = 0.0 if linear.bias is None else linear.bias
    folded = nn.Linear(linear.in_features, linear.out_features).to(linear.weight)
    folded.weight.copy_(gain[:, None] * linear.weight)
    folded.bias.copy_(gain * (before - norm.moving_mean) + norm.bias)
    return folded
