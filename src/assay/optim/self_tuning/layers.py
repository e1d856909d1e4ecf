"""Layers whose weights respond to hyper-parameters: a gate on each unit of a second set of weights.

    k = h Vᵀ,    W(h) = α W₀ + diag(k_w) W₁,    b(h) = α b₀ + k_b ⊙ b₁,    y = W(h) x + b(h)

h differs between the examples of a batch. For a linear network with a penalty on its Jacobian the best response of
the weights has this form. Twice the parameters, and twice the products, of a plain layer.

MacKay et al., 2019, arXiv:1903.03088.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Values = Float[Tensor, "batch hyperparameters"]
Features = Float[Tensor, "batch *features"]


class _Responsive(nn.Module):
    """Both sets of weights are U(±1/√fan_in), V is N(0, 0.01²) and α, which is learned, 1."""

    def __init__(self, shape: tuple[int, ...], hyperparameters: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(shape[0]).uniform_(-bound, bound))
        self.response_weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.response_bias = nn.Parameter(torch.empty(shape[0]).uniform_(-bound, bound))
        self.gates = nn.Linear(hyperparameters, 2 * shape[0], bias=False)
        nn.init.normal_(self.gates.weight, std=0.01)
        self.scale = nn.Parameter(torch.ones(()))

    def squared_norm(self, h: Values) -> Float[Tensor, " batch"]:
        """‖W(h)‖² of each example's weights, biases left out."""
        gate = self.gates(h).chunk(2, dim=-1)[0]
        one, other = self.weight.flatten(1), self.response_weight.flatten(1)
        fixed, both = one.square().sum(-1), (one * other).sum(-1)
        return (self.scale**2 * fixed + 2 * self.scale * gate * both + gate**2 * other.square().sum(-1)).sum(-1)


class ResponsiveLinear(_Responsive):
    def __init__(self, in_features: int, out_features: int, hyperparameters: int) -> None:
        super().__init__((out_features, in_features), hyperparameters)

    def forward(self, x: Float[Tensor, "batch in"], h: Values) -> Float[Tensor, "batch out"]:
        gate, shift = self.gates(h).chunk(2, dim=-1)
        y = self.scale * F.linear(x, self.weight, self.bias)
        return y + gate * F.linear(x, self.response_weight) + shift * self.response_bias


class ResponsiveConv2d(_Responsive):
    """A gate for each output channel."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        hyperparameters: int,
        *,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), hyperparameters)
        self.stride, self.padding = stride, padding

    def forward(
        self, x: Float[Tensor, "batch in height width"], h: Values
    ) -> Float[Tensor, "batch out rows columns"]:
        gate, shift = (part[..., None, None] for part in self.gates(h).chunk(2, dim=-1))
        y = self.scale * F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        response = F.conv2d(x, self.response_weight, None, self.stride, self.padding)
        return y + gate * response + shift * self.response_bias[:, None, None]


def squared_norm(model: nn.Module, h: Values) -> Float[Tensor, " batch"]:
    """‖W(h)‖² over all responsive layers: times a weight decay, what it adds to each example's loss."""
    return torch.stack([each.squared_norm(h) for each in model.modules() if isinstance(each, _Responsive)]).sum(0)


def dropout(x: Features, rate: Float[Tensor, " batch"]) -> Features:
    """Each entry of an example is 0 with the example's ``rate``, and else divided by 1 − rate."""
    keep = (1 - rate).view(-1, *[1] * (x.ndim - 1))
    return x * torch.bernoulli(keep.expand_as(x)) / keep
