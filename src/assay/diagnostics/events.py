"""Events: what one pass shows, while it is there. Nothing of them is to be kept but reductions.

What several diagnostics need is computed when the first one asks.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Attention:
    """Softmax attention of one layer, reduced over blocks of heads.

    Attributes:
        layer: its index, from 0.
        domain: what the text of this batch is.
        largest_logit: max over queries and the keys that they see of q·k·scale, before the softmax.
        entropy: H(w_i) in nats of each query's weights.
        received: Σ_{i≥j} w_ij / (T − j): the mean weight that key j gets from the queries that see it.
        value_norm: ‖v_j‖ of each key.
        output: Σ_j w_ij v_j.
    """

    layer: int
    domain: str
    largest_logit: Float[Tensor, "batch heads"]
    entropy: Float[Tensor, "batch heads time"]
    received: Float[Tensor, "batch heads time"]
    value_norm: Float[Tensor, "batch kv_heads time"]
    output: Float[Tensor, "batch heads time dim"]

    @cached_property
    def output_square(self) -> Float[Tensor, "batch heads time"]:
        return self.output.square().sum(-1)


class LayerStep:
    """The residual stream before, within and after one layer, in float32 at least.

    Attributes:
        layer: its index, from 0.
        before: h_l.
        after: h_{l+1}.
        attention: what attention added to the stream, None where it cannot be told apart.
        mlp: what the MLP added to the stream, None where it cannot be told apart.
    """

    def __init__(
        self,
        layer: int,
        before: Float[Tensor, "batch time hidden"],
        after: Float[Tensor, "batch time hidden"],
        attention: Float[Tensor, "batch time hidden"] | None,
        mlp: Float[Tensor, "batch time hidden"] | None,
    ) -> None:
        self.layer, self.before, self.after = layer, before, after
        self.attention, self.mlp = attention, mlp

    @cached_property
    def update(self) -> Float[Tensor, "batch time hidden"]:
        return self.after - self.before

    @cached_property
    def norm_before(self) -> Float[Tensor, "batch time"]:
        return self.before.norm(dim=-1)

    @cached_property
    def norm_after(self) -> Float[Tensor, "batch time"]:
        return self.after.norm(dim=-1)

    @cached_property
    def size_after(self) -> Float[Tensor, "batch time hidden"]:
        """|h_{l+1}|, by feature."""
        return self.after.abs()


@dataclasses.dataclass(frozen=True)
class Neurons:
    """What the last map of a layer's MLP reads.

    Attributes:
        layer: its index, from 0.
        values: the activations.
    """

    layer: int
    values: Float[Tensor, "*tokens neurons"]


class Output:
    """The logits of a batch, and the tokens that came next.

    Attributes:
        logits: of all places but the last.
        targets: the token after each.
        hidden: what the head read, at all places; None if the model has no module for a head.
    """

    def __init__(
        self,
        logits: Float[Tensor, "batch time vocab"],
        ids: Int[Tensor, "batch time"],
        hidden: Float[Tensor, "batch time hidden"] | None = None,
    ) -> None:
        self.logits = logits[:, :-1].float()
        self.targets = ids[:, 1:]
        self.hidden = hidden

    @cached_property
    def log_normalizer(self) -> Float[Tensor, "batch time"]:
        """ln Z = ln Σ exp(logit)."""
        return self.logits.logsumexp(-1)

    @cached_property
    def entropy(self) -> Float[Tensor, "batch time"]:
        """In nats: ln Z − Σ p·logit."""
        means = [torch.einsum("tv,tv->t", row.softmax(-1), row) for row in self.logits]
        return self.log_normalizer - torch.stack(means)

    @cached_property
    def loss(self) -> Float[Tensor, "batch time"]:
        """Cross-entropy in nats."""
        return self.log_normalizer - self.logits.gather(-1, self.targets[..., None])[..., 0]

    @cached_property
    def best(self) -> tuple[Float[Tensor, "batch time"], Int[Tensor, "batch time"]]:
        """The largest logit and the token it belongs to."""
        largest = self.logits.max(-1)
        return largest.values, largest.indices
