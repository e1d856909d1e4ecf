"""MESA: cross-entropy, and how far the outputs moved away from those of the weights' moving average.

    p = softmax(z_ema / τ),  q = softmax(z / τ)
    L = cross-entropy + weight · τ² · mean over tokens of KL(p ‖ q)
    θ_ema ← a θ_ema + (1 − a) θ    after each step

No gradient goes through z_ema, so that of the penalty is weight · τ · (q − p) / tokens for each token's logits. The
penalty on the change of outputs along the trajectory stands in for SAM's sharpness, at the price of one forward pass.

Du, Zhou, Feng, Tan, Zhou, 2022, arXiv:2205.14083.
"""

from __future__ import annotations

import copy
import math
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from assay.losses import losses
from assay.losses.cross_entropy import CrossEntropy

Logits = Float[Tensor, "*batch classes"]


def trajectory_penalty(logits: Logits, earlier: Logits, temperature: float) -> Float[Tensor, "*batch"]:
    """τ² KL(softmax(earlier / τ) ‖ softmax(logits / τ)) in nats; no gradient reaches ``earlier``."""
    past = F.log_softmax(earlier.detach().float() / temperature, dim=-1)
    now = F.log_softmax(logits.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(now, past, reduction="none", log_target=True).sum(-1)


@losses.register("mesa")
class MESA(CrossEntropy):
    """The teacher is the moving average of ``model``, in evaluation mode; it is saved and resumed with the run.

    The penalty counts from the share ``start`` of the run on. ``horizon`` is the share of the run over which the
    average reaches back: 1 − a = 1 / (horizon · steps), nearly. The defaults are the authors' for ImageNet: 5 of 90
    epochs, and a = 0.9998 at 112,590 steps. FLOPs of a run do not count the teacher's forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        weight: Annotated[float, Field(ge=0)] = 0.8,
        temperature: Annotated[float, Field(gt=0)] = 5.0,
        start: Annotated[float, Field(ge=0, le=1)] = 0.055,
        horizon: Annotated[float, Field(gt=0)] = 0.0444,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, z_loss=z_loss)
        self.weight, self.temperature = weight, temperature
        self.start, self.horizon = start, horizon
        self.active = False
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MESA:
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def begin_step(self, model: nn.Module, step: int, progress: float) -> None:
        """Take in the weights that the step before this one left; the first step's are the teacher's start."""
        self.active = self.weight > 0 and progress >= self.start
        share = -math.expm1(-progress / ((step + 0.5) * self.horizon)) if step else 1.0
        mine, new = self.teacher.state_dict(), model.state_dict()
        floating = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in floating], [new[name] for name in floating], share)
        for name in mine.keys() - set(floating):
            mine[name].copy_(new[name])

    @torch.no_grad()
    def read(self, inputs: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"] | None:
        """The teacher's logits, where the penalty counts."""
        logits: Tensor | None = self.teacher(inputs) if self.active else None
        return logits

    def forward(
        self,
        logits: Float[Tensor, "batch time vocab"],
        targets: Int[Tensor, "batch time"],
        earlier: Float[Tensor, "batch time vocab"] | None = None,
    ) -> Float[Tensor, ""]:
        loss = super().forward(logits, targets)
        if earlier is None:
            return loss
        counted = targets != -100
        return loss + self.weight * trajectory_penalty(logits, earlier, self.temperature)[counted].mean()
