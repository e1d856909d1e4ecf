"""Poincaré linear layer and convolution, which measure distances from hyperplanes of the ball.

    v_k = 2|z_k|/√c · arsinh(√c λ(x) ⟨x, ẑ_k⟩ cosh(2√c r_k) − (λ(x) − 1) sinh(2√c r_k)),    ẑ_k = z_k / |z_k|
    y   = w / (1 + √(1 + c|w|²)),    w_k = sinh(√c v_k) / √c

For x = exp₀(p) that is, without a step into the ball,

    v_k    = 2|z_k|/√c · arsinh(sinh(2√c|p|) ⟨p, ẑ_k⟩/|p| · cosh(2√c r_k) − cosh(2√c|p|) sinh(2√c r_k))
    log₀ y = arsinh(√c|w|) / (2√c|w|) · w

A convolution applies it to the patches: the tangent vectors of a patch, each times B(nk²/2, ½) / B(n/2, ½) for n
channels and k × k pixels (Euler's beta function), are one long vector p. It needs the patches for ⟨p, z_k⟩ and |p|²
only, which two Euclidean convolutions give, so that patches are never unfolded.

Started at Z = ½ I, which makes a square layer the identity and lets deep stacks keep their norms; "normal" draws
N(0, 1/(2 n_in n_out)) as before that.
Layer: Shimizu, Mukuta, Harada, 2021, arXiv:2006.08210; convolution and start: van Spengler, Berkhout, Mettes, 2023,
arXiv:2303.14027.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.residual.poincare import ball

Start = Literal["identity", "normal"]

LARGEST = 40.0
"""Of the argument of a sinh: points that far out are beyond what any precision tells from the border."""


class PoincareLinear(nn.Module):
    """Tangent vectors at the origin in, and out. ``weight`` holds the z_k, ``offset`` the r_k."""

    def __init__(self, in_features: int, out_features: int, c: float, *, start: Start = "identity") -> None:
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(started((out_features, in_features), start))
        self.offset = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        square = x.square().sum(-1, keepdim=True)
        size = ball.length(self.weight).squeeze(-1)
        return hyperplanes(F.linear(x, self.weight), square, size, self.offset, self.c, dim=-1)


class PoincareConv2d(nn.Module):
    """Tangent vectors at the origin in, and out; padded with the origin so that a stride of 1 keeps the size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        c: float,
        *,
        stride: int = 1,
        start: Start = "identity",
    ) -> None:
        super().__init__()
        self.c = c
        self.stride = stride
        self.padding = kernel_size // 2
        pixels = kernel_size**2
        self.beta = euler_beta(in_channels * pixels / 2) / euler_beta(in_channels / 2)
        weight = started((out_channels, in_channels * pixels), start)
        self.weight = nn.Parameter(weight.view(out_channels, in_channels, kernel_size, kernel_size))
        self.offset = nn.Parameter(torch.zeros(out_channels, 1, 1))

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out high wide"]:
        x = self.beta * x
        inner = F.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
        ones = torch.ones_like(self.weight[:1, :1])
        square = F.conv2d(x.square().sum(1, keepdim=True), ones, stride=self.stride, padding=self.padding)
        size = ball.length(self.weight.flatten(1)).unsqueeze(-1)
        return hyperplanes(inner, square, size, self.offset, self.c, dim=1)


def hyperplanes(
    inner: Tensor, square: Tensor, size: Tensor, offset: Tensor, c: float, *, dim: int
) -> Float[Tensor, "..."]:
    """log₀ y from ⟨p, z_k⟩, |p|², |z_k| and r_k, with the outputs along ``dim``.

    Points beyond the precision's margin, x or y, are taken as at it.
    """
    root = c**0.5
    furthest = math.atanh(1 - ball.margin(inner))
    n = square.clamp_min(1e-30).sqrt()
    angle = 2 * (root * n).clamp(max=furthest)
    turn = 2 * root * offset
    argument = angle.sinh() * inner / (n * size) * turn.cosh() - angle.cosh() * turn.sinh()
    w = (2 * size * argument.asinh()).clamp(-LARGEST, LARGEST).sinh()
    reach = w.square().sum(dim, keepdim=True).clamp_min(1e-30).sqrt()
    return (reach.asinh() / 2).clamp(max=furthest) / (root * reach) * w


def started(shape: tuple[int, int], start: Start) -> Float[Tensor, "out in"]:
    """½ I, or Gaussian numbers of the variance 1/(2 n_in n_out)."""
    return torch.eye(*shape) / 2 if start == "identity" else torch.randn(shape) * (2 * math.prod(shape)) ** -0.5


def euler_beta(a: float) -> float:
    """B(a, ½) = Γ(a) Γ(½) / Γ(a + ½)."""
    return math.exp(math.lgamma(a) + math.lgamma(0.5) - math.lgamma(a + 0.5))
