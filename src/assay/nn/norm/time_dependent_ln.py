"""TD-LN: layer norm whose gain and offset move with the time of a diffusion process.

    m(c) = σ((1 + w) ⊙ c + b),        c = log SNR / 4
    γ(c) = m ⊙ γ₀ + (1 − m) ⊙ γ₁,     β(c) = m ⊙ β₀ + (1 − m) ⊙ β₁
    y = γ(c) ⊙ (x − mean(x)) / √(var(x) + ε) + β(c)

It takes the place of adaLN's network from time to gains, with 4 parameters per gain. Every gain and offset has a gate
(w, b) of its own per feature. TD-RMSNorm leaves mean and offset out and adds ε to the root:

    y = γ(c) ⊙ x / (rms(x) + ε)

At the start γ₀ = γ₁ = 1, β₀ = β₁ = 0 and w = b = 0, where nothing depends on time yet.

Liu et al., 2024, arXiv:2406.09416.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import UserError
from assay.nn.norm import norms


def vp_log_snr(t: Float[Tensor, "*times"], beta_min: float = 0.1, beta_max: float = 20.0) -> Float[Tensor, "*times"]:
    """log SNR = −log(exp(∫β) − 1) of the variance-preserving process at times t from 0 to 1.

    ∫β = β_min t + (β_max − β_min) t²/2; the result is bounded by ± log 10⁶, which it reaches near t = 0.
    """
    integral = beta_min * t + (beta_max - beta_min) * t.square() / 2
    return -torch.expm1(integral).clamp(1e-6, 1e6).log()


class TimeDependentParameter(nn.Module):
    """m ⊙ p₀ + (1 − m) ⊙ p₁ with m = σ((1 + w) c + b).

    The paper decays p₀ and p₁ but not w and b: ``weight_decay_parameters`` tells the optimizer so.
    """

    weight_decay_parameters = frozenset({"early", "late"})

    def __init__(self, size: int, start: float) -> None:
        super().__init__()
        self.early = nn.Parameter(torch.full((size,), start))
        self.late = nn.Parameter(torch.full((size,), start))
        self.slope = nn.Parameter(torch.zeros(size))
        self.offset = nn.Parameter(torch.zeros(size))

    def forward(self, c: Float[Tensor, " times"]) -> Float[Tensor, "times size"]:
        """``early`` is p₀, which holds at little noise (large c), and ``late`` is p₁."""
        gate = torch.sigmoid((1 + self.slope) * c[:, None] + self.offset)
        return self.late + gate * (self.early - self.late)


class TimeDependentNorm(nn.Module):
    """What TD-LN and TD-RMSNorm share: where the time comes from.

    ``forward(x, log_snr)`` takes one log SNR per sample (the first dimension of x), or one for all. A network whose
    norms are called by x alone is run within ``diffusion_time(network, log_snr)``. With neither, as in a decoder of
    text, log SNR is 0: gain and offset are then the means of their two copies until a gate's b has moved, and do not
    depend on anything.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.gain = TimeDependentParameter(hidden_size, 1.0)
        self.log_snr: Tensor | None = None

    def at(self, parameter: TimeDependentParameter, x: Tensor, log_snr: Tensor | None) -> Tensor:
        """The parameter at the time of x, in a shape that broadcasts with it."""
        if log_snr is None:
            log_snr = self.log_snr
        c = x.new_zeros(1, dtype=parameter.slope.dtype) if log_snr is None else log_snr.reshape(-1) / 4
        if len(c) not in (1, len(x)):
            raise UserError(f"{len(c)} diffusion times for {len(x)} samples; give one for each, or one for all")
        values = parameter(c.to(parameter.slope.dtype))
        return values[0] if len(c) == 1 else values.view(len(c), *[1] * (x.ndim - 2), x.shape[-1])


@norms.register("time-dependent-ln")
class TimeDependentLN(TimeDependentNorm):
    """TD-LN; without a time it is layer norm with two copies of its parameters (see ``TimeDependentNorm``)."""

    def __init__(self, hidden_size: int, *, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps)
        self.bias = TimeDependentParameter(hidden_size, 0.0)

    def forward(
        self, x: Float[Tensor, "batch *others hidden"], log_snr: Float[Tensor, " times"] | None = None
    ) -> Float[Tensor, "batch *others hidden"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normalized = F.layer_norm(wide, x.shape[-1:], eps=self.eps)
        return (self.at(self.gain, wide, log_snr) * normalized + self.at(self.bias, wide, log_snr)).to(x.dtype)


@norms.register("time-dependent-rms-norm")
class TimeDependentRMSNorm(TimeDependentNorm):
    """TD-RMSNorm; without a time it is RMSNorm with two copies of its gain (see ``TimeDependentNorm``)."""

    def __init__(self, hidden_size: int, *, eps: float = 1e-8) -> None:
        super().__init__(hidden_size, eps)

    def forward(
        self, x: Float[Tensor, "batch *others hidden"], log_snr: Float[Tensor, " times"] | None = None
    ) -> Float[Tensor, "batch *others hidden"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return (self.at(self.gain, wide, log_snr) * (wide / (rms + self.eps))).to(x.dtype)


@contextmanager
def diffusion_time(model: nn.Module, log_snr: Float[Tensor, " times"]) -> Iterator[None]:
    """Within it, the time-dependent norms of ``model`` work at ``log_snr``: one value per sample, or one for all.

    With activation checkpointing the backward pass has to lie within it too. Raises ``UserError`` if there is no such
    norm.
    """
    layers = [module for module in model.modules() if isinstance(module, TimeDependentNorm)]
    if not layers:
        raise UserError("the model has no time-dependent norm that a diffusion time could reach")
    before = [layer.log_snr for layer in layers]
    for layer in layers:
        layer.log_snr = log_snr
    try:
        yield
    finally:
        for layer, earlier in zip(layers, before, strict=True):
            layer.log_snr = earlier
