"""Exponentiated gradient: multiplicative steps, in which no weight ever changes its sign.

    w ← w · exp(−η (s · sign(w) · u + λ))

u is the gradient with momentum, or Adam's update m̂ / (√v̂ + ε). A step is one of gradient descent on log |w|, with
the gradient by w in place of the one by log |w|: mirror descent with φ(w) = Σ |w| log |w| − |w|. So sη is the share
by which weights change and not a distance; s = 10 lets it share a rate with AdamW. The decay acts on log |w|, too, so
that no rate takes a weight across 0.

Synapses keep their sign in this way, too (Dale's law), and these steps bring weights to a log-normal distribution.

Kivinen, Warmuth, 1997 (EG); Cornford et al., 2024, doi:10.1101/2024.10.25.620272 (with signs and with Adam); its
counterpart in sampling is that of Shetty, Prasath, Seelamantula, 2025, arXiv:2510.02730.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT

from assay.errors import UserError
from assay.optim.base import MatrixOptimizer, Share, adamw_step
from assay.optim.portions import portions
from assay.optim.precision import accumulator, widened, write_back
from assay.optim.registries import optimizers


@optimizers.register("exponentiated-gradient")
class ExponentiatedGradient(MatrixOptimizer):
    """Groups of role ``matrix`` take these steps, all others AdamW's.

    ``update`` is what u is: ``adam`` by ``betas`` and ``eps``, or ``gradient`` with ``momentum``; ``scale`` is s.
    Moments of matrices below float32 are float32. A weight that is 0, or becomes too small for its type, stays 0; a
    matrix that starts with nothing else raises ``UserError``.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        update: Literal["adam", "gradient"] = "adam",
        scale: Annotated[float, Field(gt=0)] = 10.0,
        momentum: Share = 0.9,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, {"direction": update, "scale": scale, "momentum": momentum}, **options)

    def update_matrices(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for some in portions(parameters):
            self._update_portion(group, parameters[some], gradients[some])

    def _update_portion(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        weights, gradients = widened(parameters), widened(gradients)
        exponents = [torch.zeros_like(weight) for weight in weights]
        lr = group["scale"] * group["lr"]
        if group["direction"] == "adam":
            self._descend_by_adam(group, lr, parameters, exponents, gradients)
        else:
            buffers = [self._state(p, "momentum")["momentum"] for p in parameters]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients)
            torch._foreach_add_(exponents, buffers, alpha=-lr)
        for weight, exponent in zip(weights, exponents, strict=True):
            decay = weight.new_full((), -group["lr"] * group["weight_decay"])
            torch.addcmul(decay, exponent, torch.copysign(weight.new_ones(()), weight), out=exponent)
        torch._foreach_exp_(exponents)
        torch._foreach_mul_(weights, exponents)
        write_back(parameters, weights)

    def _descend_by_adam(
        self,
        group: dict[str, Any],
        lr: float,
        parameters: list[Tensor],
        exponents: list[Tensor],
        gradients: list[Tensor],
    ) -> None:
        """One step of Adam from 0, which leaves −lr · u in ``exponents``."""
        states = [self._state(p, "exp_avg", "exp_avg_sq") for p in parameters]
        for p, state in zip(parameters, states, strict=True):
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        adamw_step(group, exponents, gradients, states, lr=lr, weight_decay=0.0)

    def _state(self, p: Tensor, *names: str) -> dict[str, Tensor]:
        """The state of ``p``, which begins as zeros."""
        state: dict[str, Tensor] = self.state[p]
        if not state:
            if not p.any():
                raise UserError(
                    f"'exponentiated-gradient' cannot move a matrix of shape {tuple(p.shape)} that starts at 0; "
                    "give it other starting weights, or choose another optimizer"
                )
            for name in names:
                state[name] = torch.zeros_like(p, dtype=accumulator(p))
        return state
