"""Weight decay that grows with the root of the width, beside muP's learning rates.

    r = hidden_size / width
    matrices              η = η₀ / r,   λ = λ₀ √r,   W(0) ~ std / √r
    heads                 η = η₀ / r,   λ = 0,       W(0) ~ std / r
    embeddings, vectors   η = η₀,       λ = 0

Under AdamW a matrix soon forgets its start, and its largest singular value settles near √(η/λ) · d^0.75. With η as
1/d that stays put if λ is as √d. Heads and starts are muP's: a head whose rate and start are divided by r is one
whose logits are. How the paper treats them was not read.

Matrices are the parameters of role ``matrix``. Both of their sides have to grow with the width, so ``num_kv_heads``
and ``intermediate_size`` must grow along, and ``head_dim`` must not. A tied head learns as the embedding that it is.

Fan, Liu, Zhao, Yuan, Gu, 2025, arXiv:2510.15262; muP: Yang et al., 2022, arXiv:2203.03466.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from assay.optim.groups import ParameterGroup, head_parameters, parameter_groups
from assay.optim.registries import transfers


@transfers.register("weight-decay-scaling")
class WeightDecayScaling:
    """``width`` is the hidden size at which rate η₀ and decay λ₀ were tuned; the decay is as r^``exponent``.

    Exponent 0 is muP with one decay for all widths, 1 keeps η λ the same.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        width: Annotated[int, Field(gt=0)] = 64,
        exponent: Annotated[float, Field(ge=0)] = 0.5,
    ) -> None:
        self.width, self.exponent = width, exponent
        self.ratio = hidden_size / width

    def initialize(self, model: nn.Module) -> None:
        """Rescale the weights of linear layers, which are drawn with one deviation whatever the width."""
        heads = head_parameters(model)
        matrices = {id(p) for group in parameter_groups(model) if group["role"] == "matrix" for p in group["params"]}
        for module in model.modules():
            if isinstance(module, nn.Linear) and id(module.weight) in matrices | heads:
                module.weight.detach().mul_(self.ratio ** (-1.0 if id(module.weight) in heads else -0.5))

    def groups(self, model: nn.Module) -> list[ParameterGroup]:
        heads = head_parameters(model)
        result: list[ParameterGroup] = []
        for group in parameter_groups(model):
            matrix = group["role"] == "matrix"
            for head in (False, True):
                members = [p for p in group["params"] if (p.ndim >= 2 and id(p) in heads) == head]
                if members:
                    lr_scale = 1 / self.ratio if matrix or head else 1.0
                    decay_scale = self.ratio**self.exponent if matrix else 0.0
                    result.append({**group, "params": members, "lr_scale": lr_scale, "decay_scale": decay_scale})
        return result
