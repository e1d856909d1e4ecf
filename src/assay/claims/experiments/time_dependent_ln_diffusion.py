"""How well a small diffusion transformer denoises digits with TD-LN, with adaLN-Zero and without a time."""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from assay.claims.digits import batches, digits
from assay.claims.experiments import experiments
from assay.nn.norm import NormFactory
from assay.nn.norm.time_dependent_ln import TimeDependentLN, diffusion_time, vp_log_snr
from assay.optim.groups import parameter_groups

NORMS: dict[str, NormFactory] = {
    "td_ln": TimeDependentLN,
    "adaln": functools.partial(nn.LayerNorm, elementwise_affine=False),
    "no_time": nn.LayerNorm,
}
FREQUENCIES = 32
"""Of adaLN's time embedding."""


class _Branch(nn.Module):
    """x + f(norm(x)), or x + α f((1 + γ) norm(x) + β) with α, β, γ from the time by a linear map that starts at 0."""

    def __init__(self, function: nn.Module, norm: nn.Module, *, hidden_size: int, adaptive: bool) -> None:
        super().__init__()
        self.function, self.norm = function, norm
        self.modulation = nn.Linear(hidden_size, 3 * hidden_size) if adaptive else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Float[Tensor, "batch token hidden"], time: Float[Tensor, "batch hidden"]) -> Tensor:
        if self.modulation is None:
            return x + self.function(self.norm(x))
        gate, shift, scale = self.modulation(F.silu(time))[:, None].chunk(3, dim=-1)
        return x + gate * self.function((1 + scale) * self.norm(x) + shift)


class _Attention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.inputs, self.output = nn.Linear(hidden_size, 3 * hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Float[Tensor, "batch token hidden"]) -> Float[Tensor, "batch token hidden"]:
        q, k, v = self.inputs(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DiffusionTransformer(nn.Module):
    """Noisy 8 × 8 images to their noise, in patches of 2 × 2; what draws random numbers is the same in all arms."""

    def __init__(self, norm: NormFactory, *, hidden_size: int, depth: int, num_heads: int, adaptive: bool) -> None:
        super().__init__()
        self.embedding = nn.Linear(4, hidden_size)
        self.position = nn.Parameter(0.02 * torch.randn(16, hidden_size))
        functions: list[nn.Module] = []
        for _ in range(depth):
            functions.append(_Attention(hidden_size, num_heads))
            functions.append(
                nn.Sequential(
                    nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
                )
            )
        self.head = nn.Linear(hidden_size, 4)
        self.final_norm = norm(hidden_size)
        self.branches = nn.ModuleList(
            _Branch(function, norm(hidden_size), hidden_size=hidden_size, adaptive=adaptive) for function in functions
        )
        self.time: nn.Module | None = None
        self.final_modulation: nn.Linear | None = None
        if adaptive:
            self.time = nn.Sequential(
                nn.Linear(2 * FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
            )
            self.final_modulation = nn.Linear(hidden_size, 2 * hidden_size)
            nn.init.zeros_(self.final_modulation.weight)
            nn.init.zeros_(self.final_modulation.bias)

    def forward(self, images: Float[Tensor, "batch 8 8"], t: Float[Tensor, " batch"]) -> Float[Tensor, "batch 8 8"]:
        patches = images.unflatten(1, (4, 2)).unflatten(3, (4, 2)).transpose(2, 3).reshape(-1, 16, 4)
        x = self.embedding(patches) + self.position
        time = x if self.time is None else self.time(_frequencies(t))
        for branch in self.branches:
            x = branch(x, time)
        x = self.final_norm(x)
        if self.final_modulation is not None:
            shift, scale = self.final_modulation(F.silu(time))[:, None].chunk(2, dim=-1)
            x = (1 + scale) * x + shift
        return self.head(x).reshape(-1, 4, 4, 2, 2).transpose(2, 3).reshape(-1, 8, 8)


def _frequencies(t: Float[Tensor, " batch"]) -> Float[Tensor, "batch embedded"]:
    angles = 1000 * t[:, None] * torch.exp(-math.log(10_000) * torch.arange(FREQUENCIES) / FREQUENCIES)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


RATES = (4e-3, 1.2e-2)


@experiments.register("time-dependent-ln-diffusion")
def time_dependent_ln_diffusion(
    seed: int,
    *,
    steps: int = 300,
    batch_size: int = 32,
    hidden_size: int = 48,
    depth: int = 2,
    num_heads: int = 4,
    draws: int = 4,
) -> dict[str, float]:
    """Mean squared error of the predicted noise on test images, and parameters, by arm.

    Arms: ``td_ln``, ``adaln`` (adaLN-Zero, with its gates) and ``no_time`` (layer norm). All start from the same
    weights, see the same images, times and noise, and get the learning rate of ``RATES`` that is best on training
    images. An image is tested at ``draws`` times, spread evenly over all images, with a noise for each. The process
    is variance-preserving in continuous time.
    """
    images, _, test_images, _ = digits(seed)
    found: dict[str, float] = {}
    for name, norm in NORMS.items():
        trained: dict[float, DiffusionTransformer] = {}
        for rate in RATES:
            torch.manual_seed(seed)
            model = DiffusionTransformer(
                norm, hidden_size=hidden_size, depth=depth, num_heads=num_heads, adaptive=name == "adaln"
            )
            _train(model, images, steps=steps, batch_size=batch_size, lr=rate, seed=seed)
            trained[_test(model, images[: len(test_images)], draws=draws, seed=seed)] = model
        model = trained[min(trained)]
        found[f"{name}_loss"] = _test(model, test_images, draws=draws, seed=seed)
        found[f"{name}_parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return found


def _loss(model: nn.Module, images: Tensor, t: Float[Tensor, " batch"], generator: torch.Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=generator)
    log_snr = vp_log_snr(t)
    share = torch.sigmoid(log_snr)[:, None, None]
    noisy = share.sqrt() * images + (1 - share).sqrt() * noise
    timed = isinstance(model.final_norm, TimeDependentLN)
    with diffusion_time(model, log_snr) if timed else nullcontext():
        return F.mse_loss(model(noisy, t), noise)


def _train(model: nn.Module, images: Tensor, *, steps: int, batch_size: int, lr: float, seed: int) -> None:
    groups = [
        {"params": group["params"], "weight_decay": 0.03 if group["decay"] else 0.0}
        for group in parameter_groups(model)
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, cycle_momentum=False)
    generator = torch.Generator().manual_seed(seed)
    for index in batches(len(images), steps=steps, batch_size=batch_size, seed=seed):
        loss = _loss(model, images[index], torch.rand(len(index), generator=generator), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _test(model: nn.Module, images: Tensor, *, draws: int, seed: int) -> float:
    generator = torch.Generator().manual_seed(-1 - seed)
    times = ((torch.arange(len(images) * draws) + 0.5) / (len(images) * draws)).view(len(images), draws)
    return math.fsum(_loss(model, images, times[:, draw], generator) for draw in range(draws)) / draws
