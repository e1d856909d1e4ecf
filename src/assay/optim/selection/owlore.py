"""OwLore: as LISA, with blocks drawn by their share of outliers.

    A = |W_ij| √(mean over sequences of Σ over tokens of x_j²)    of all linear maps y = W x of a block together
    D_b = 100 · |{a ∈ A : a > M · mean A}| / |A|,    p_b ∝ D_b

Before every K-th step γ of the N blocks are drawn one after another in proportion to p; these, and what is in no
block, are trained. D is measured once, on the weights that training starts from and its first batch. The paper
projects the gradients of the trained blocks to low rank: ``optimizer = "galore"``.

Li, Yin, Gao, Liu, 2024, arXiv:2405.18380. The scores are OWL's: Yin et al., 2023, arXiv:2310.05175.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from assay.optim.layers import Switch, blocks_of, draw, trained
from assay.optim.registries import selections
from assay.optim.selection.lisa import check_layers


@selections.register("owlore")
class OwLore:
    """γ is ``layers``, K is ``every`` and M is ``threshold``.

    ``distribution`` is ``outlier``, or one to compare it with: ``uniform`` (LISA's), ``reverse`` (p ∝ max D − D),
    ``increase`` and ``decrease`` (linear in the depth). Blocks without outliers are drawn once those with some are
    all taken; where no block has any, the draw is uniform. ``reset_state`` is as in LISA. Raises ``UserError`` for
    more layers than there are blocks.
    """

    changes = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        seed: int,
        calibration: Callable[[], Int[Tensor, "batch time"]],
        *,
        layers: Annotated[int, Field(ge=0)] = 2,
        every: Annotated[int, Field(gt=0)] = 50,
        distribution: Literal["outlier", "uniform", "reverse", "increase", "decrease"] = "outlier",
        threshold: Annotated[float, Field(gt=0)] = 13.0,
        reset_state: bool = True,
    ) -> None:
        self.model, self.blocks, self.calibration = model, blocks_of(model), calibration
        check_layers("owlore", layers, len(self.blocks))
        self.layers, self.every, self.seed, self.threshold = layers, every, seed, threshold
        self.distribution = distribution
        self.switch = Switch(trained(self.blocks), optimizer if reset_state else None)
        self.scores: Tensor | None = None

    def __call__(self, step: int) -> None:
        if self.scores is None and self.distribution in ("outlier", "reverse"):
            self.scores = outlier_ratios(self.model, self.blocks, self.calibration(), self.threshold)
            if torch.distributed.is_initialized():
                torch.distributed.broadcast(self.scores, 0)
        self.switch(self.active(step))

    def active(self, step: int) -> list[int]:
        """The blocks that step ``step`` trains."""
        return draw(self.weights(), self.layers, self.seed, step // self.every)

    def weights(self) -> Float[np.ndarray, " blocks"]:
        """p, up to a factor."""
        count = len(self.blocks)
        scores = np.ones(count) if self.scores is None else self.scores.double().cpu().numpy()
        by_name = {
            "outlier": scores,
            "uniform": np.ones(count),
            "reverse": scores.max() - scores,
            "increase": np.arange(1.0, count + 1),
            "decrease": np.arange(float(count), 0, -1),
        }
        return by_name[self.distribution]

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.scores is None else {"scores": self.scores}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.scores = state.get("scores")


@torch.no_grad()
def outlier_ratios(
    model: nn.Module, blocks: Sequence[nn.Module], ids: Int[Tensor, "batch time"], threshold: float
) -> Float[Tensor, " blocks"]:
    """D of each block, in percent, from one forward pass of ``model`` on ``ids``.

    Linear maps are ``nn.Linear`` and transformers' ``Conv1D``, whose weight is the transpose.
    """
    maps = [[m for m in block.modules() if isinstance(m, nn.Linear) or _transposed(m)] for block in blocks]
    powers: dict[nn.Module, Tensor] = {}

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].float()
        powers[module] = powers.get(module, 0) + x.flatten(0, -2).square().sum(0) / len(ids)

    hooks = [module.register_forward_pre_hook(add) for own in maps for module in own]
    training = model.training
    try:
        model.eval()
        model(ids)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    ratios = [_outlier_ratio([_importance(m, powers[m]) for m in own if m in powers], threshold) for own in maps]
    return torch.tensor(ratios, device=ids.device)


def _importance(module: nn.Module, power: Float[Tensor, " inputs"]) -> Float[Tensor, "outputs inputs"]:
    weight = module.get_parameter("weight").float()
    return (weight.mT if _transposed(module) else weight).abs() * power.sqrt()


def _outlier_ratio(importances: Sequence[Tensor], threshold: float) -> float:
    count = sum(a.numel() for a in importances)
    total = sum(a.double().sum().item() for a in importances)
    above = sum(int((a > threshold * total / count).sum()) for a in importances)
    return 100 * above / max(1, count)


def _transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
