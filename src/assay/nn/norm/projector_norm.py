"""Layer norm that gives projected image tokens the norm of text embeddings, with a compensated backward pass.

    x̂ = (v − mean(v)) / √(var(v) + ε),    y = g ⊙ x̂ + b,    g = T/√D and b = 0 at the start

T is the mean norm of the language model's embeddings (``text_norm``), so that every token starts with norm T. T/√D is
small, so little gradient would pass; Global Weight Compensation divides it by the mean gain, in the backward pass
only and only towards x̂:

    ∂L/∂x̂ ← (∂L/∂y ⊙ g) / max(ḡ, δ),      ḡ = mean |g|,  δ = 10⁻³

The diagnosis behind it: a pre-norm branch adds Δh of a size that does not depend on ‖h‖, so a token of large norm
turns by less. With φ the angle between h and Δh,

    tan θ = ‖Δh‖ sin φ / (‖h‖ + ‖Δh‖ cos φ)

Li et al., 2025, arXiv:2512.08374.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import UserError
from assay.nn.norm import norms

SMALLEST_GAIN = 1e-3
"""δ: a mean gain below it is compensated as if it were this."""


@norms.register("projector-norm")
class ProjectorNorm(nn.LayerNorm):
    """Layer norm whose output starts with norm ``target_norm`` (None: √hidden_size, gains of 1).

    It belongs between an image encoder's projector and a language model::

        norm = ProjectorNorm(hidden_size, target_norm=text_norm(language_model.embedding.weight))

    As the norm of a decoder it is layer norm with that start and that backward pass. ``compensate=False`` leaves
    Global Weight Compensation out.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        target_norm: Annotated[float, Field(gt=0)] | None = None,
        compensate: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(hidden_size, eps=eps)
        self.compensate = compensate
        if target_norm is not None:
            nn.init.constant_(self.weight, target_norm * hidden_size**-0.5)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normalized = F.layer_norm(wide, self.normalized_shape, eps=self.eps)
        if self.compensate:
            gain = self.weight.detach().abs().mean().clamp_min(SMALLEST_GAIN)
            normalized = _DividedGradient.apply(normalized, gain)
        return (self.weight * normalized + self.bias).to(x.dtype)


class _DividedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, divisor: Tensor) -> Tensor:
        ctx.save_for_backward(divisor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (divisor,) = ctx.saved_tensors
        return gradients[0] / divisor, None


@torch.no_grad()
def text_norm(embedding: Float[Tensor, "vocab hidden"], smallest: float = 1e-6) -> float:
    """T: the mean L2 norm of an embedding table's rows, those of norm ``smallest`` and below (padding) left out.

    Multiply it by whatever the language model multiplies its embeddings by. Raises ``UserError`` if no row is left.
    """
    lengths = torch.linalg.vector_norm(embedding, dim=-1, dtype=torch.promote_types(embedding.dtype, torch.float32))
    lengths = lengths[lengths > smallest]
    if not len(lengths):
        raise UserError("the embedding table has no row that is not zero; load the language model's weights first")
    return lengths.mean().item()


def effective_rotation(
    norm: Float[Tensor, "*tokens"], update_norm: Float[Tensor, "*tokens"], angle: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """θ in radians: by how much a vector of length ``norm`` turns if one of ``update_norm`` at ``angle`` is added."""
    return torch.atan2(update_norm * torch.sin(angle), norm + update_norm * torch.cos(angle))


def rotation(
    before: Float[Tensor, "*tokens hidden"], after: Float[Tensor, "*tokens hidden"]
) -> Float[Tensor, "*tokens"]:
    """The angle in radians between each token's two vectors, accurate for small angles too.

    A vector of zeros is at a right angle to all others.
    """
    before, after = F.normalize(before, dim=-1), F.normalize(after, dim=-1)
    return 2 * torch.atan2((before - after).norm(dim=-1), (before + after).norm(dim=-1))
