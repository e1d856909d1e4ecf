"""LayerNorm removal: a trained model is weaned, norm by norm, from dividing each token by its own deviation.

    real    y = γ ⊙ (x − mean(x)) / σ(x) + β,    σ(x) = √(var(x) + ε)
    fake    y = γ ⊙ (x − mean(x)) / s + β

While the model is fine-tuned, one site after another turns from real to fake, and its s stays what the running mean

    s ← m s + (1 − m) · mean over tokens of σ(x)

was at that moment. A site is a norm as some of the linear maps behind it see it: first come the norms before the
MLPs, from the first layer to the last, then those before queries and keys, then the same norms before values, at last
the one before the head. Meanwhile the input of the last norm is made even: the loss has the term

    c · mean over tokens of (σ_t − σ̄)²

where σ̄ is the mean over the tokens that are neither first nor separators, and has no gradient. A fake norm is affine,
so that in the end all are folded into the maps behind them and none is left:

    W ← W diag(γ / s) (I − 11ᵀ / d),    b ← b + W β

The published work is on LayerNorm; an RMSNorm is removed in the same way, with σ(x) = rms(x), no mean and no β.
Baroni, Khara, Schaeffer, Subkhankulov, Heimersheim, 2025, arXiv:2507.02559.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, cast

import torch
from jaxtyping import Float, Int
from pydantic import BeforeValidator, Field
from torch import Tensor

from assay.data.windows import TokenData
from assay.errors import UserError
from assay.models import Decoder
from assay.optim import optimizers, schedules
from assay.slots import Component
from assay.transforms import Report, silent, transforms
from assay.transforms.norm_sites import Site, Watch, all_sites, fold_norms, normless, open_norms, spread
from assay.transforms.tuning import OptimizerSlot, Rate, ScheduleSlot, Tuning, tune

Gap = Annotated[int, Field(ge=0)]


class RemovalTuning(Tuning):
    """As published for GPT-2 small and medium, but for the size of a batch."""

    lr: Rate = 6e-4
    optimizer: OptimizerSlot = Component(optimizers, "adamw", {"betas": (0.9, 0.999), "weight_decay": 0.01})
    schedule: ScheduleSlot = Component(schedules, "cosine", {"warmup": 25 / 300, "final": 0.5})


def unevenness(
    spreads: Float[Tensor, "batch time"], ids: Int[Tensor, "batch time"], separator: int
) -> Float[Tensor, ""]:
    """Mean over all tokens of (σ_t − σ̄)²; σ̄ leaves out the first of a row and separators, and has no gradient."""
    ordinary = ids != separator
    ordinary[:, 0] = False
    return (spreads - spreads[ordinary].mean().detach()).square().mean()


def removal_steps(depth: int, start: int, gaps: Sequence[int]) -> list[list[int]]:
    """Before which step (from 0) each site turns fake: MLPs, queries and keys, values, the head.

    Each phase goes through the layers, so many steps apart, and begins when the one before it is through.
    """
    steps = []
    for gap in gaps:
        steps.append([start + layer * gap for layer in range(depth)])
        start += depth * gap
    return [*steps, [start]]


@transforms.register("layernorm-removal")
class LayerNormRemoval:
    """Fine-tunes a Pre-LN decoder with LayerNorm or RMSNorm until it needs no norm, and folds what is left of them.

    Args:
        start: before which step (from 0) the first site turns fake.
        gaps: steps between the layers while the norms of MLPs, of queries and keys, and of values are removed; 0
            removes a phase at once.
        evenness: c, the weight of the term that makes the last stream even.
        momentum: m of the running mean, per step.
        tuning: the fine-tuning as a whole; its steps have to reach beyond the last site.
    """

    reads_text = True

    def __init__(
        self,
        *,
        start: Annotated[int, Field(ge=0)] = 20,
        gaps: tuple[Gap, Gap, Gap] = (2, 2, 3),
        evenness: Annotated[float, Field(ge=0)] = 0.1,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        tuning: Annotated[RemovalTuning, BeforeValidator(RemovalTuning.of)] = RemovalTuning(),  # noqa: B008  (frozen)
    ) -> None:
        self.start, self.gaps, self.evenness, self.momentum, self.tuning = start, gaps, evenness, momentum, tuning

    def __call__(self, model: Decoder, data: TokenData | None, report: Report = silent) -> Decoder:
        assert data is not None
        moments = removal_steps(len(model.layers), self.start, self.gaps)
        if moments[-1][0] >= self.tuning.steps:
            raise UserError(
                f"layernorm-removal: the last norm is removed before step {moments[-1][0]} (from 0), and "
                f"tuning.steps={self.tuning.steps} end before that; set more of them, or start and gaps smaller"
            )
        rows = self.tuning.batch(data, model, 0)[:, :-1]
        phases = open_norms(model, rows[:1], self.momentum)
        normless(model, phases)
        with torch.no_grad():
            model.train()(rows)
        due: dict[int, list[Site]] = {}
        for steps, sites in zip(moments, phases, strict=True):
            for step, site in zip(steps, sites, strict=True):
                due.setdefault(step, []).append(site)

        def freeze(step: int) -> None:
            for site in due.get(step, ()):
                site.freeze()

        streams: list[Tensor] = []
        last = cast(Watch, model.final_norm)
        last.register_forward_pre_hook(lambda watch, arguments: streams.append(arguments[0]))

        def uneven(ids: Int[Tensor, "batch time"]) -> Float[Tensor, ""]:
            return self.evenness * unevenness(spread(last.norm, streams.pop()), ids, data.separator)

        def count(share: float, status: str) -> None:
            real = sum(site.divisor is None for site in all_sites(phases))
            report(share, f"{real} of {len(all_sites(phases))} norms left  {status}")

        tune(model, data, self.tuning, before_step=freeze, penalty=uneven, report=count)
        return fold_norms(model, phases)
