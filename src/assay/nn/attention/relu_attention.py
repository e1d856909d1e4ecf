"""ReLU attention: a head may attend to nothing.

    O_i = Σ_j max(0, ⟨q_i, k_j⟩ / √d) v_j / n_i

n_i is the number of keys that query i sees. The weights need not sum to one, so that no token has to take what a head
has no use for. In place of softmax: Shen et al., 2023, arXiv:2302.06461; Wortsman et al., 2023, arXiv:2309.08586. As
what removes attention sinks: Guo et al., 2024, arXiv:2410.13835.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from assay.nn.attention.softmax import SoftmaxAttention, shared
from assay.nn.mixer import mixers


@mixers.register("relu-attention")
class ReLUAttention(SoftmaxAttention):
    def mix(
        self,
        x: Float[Tensor, "batch time hidden"],
        query: Float[Tensor, "batch heads time dim"],
        key: Float[Tensor, "batch kv_heads keys dim"],
        value: Float[Tensor, "batch kv_heads keys dim"],
        mask: Bool[Tensor, "batch 1 time keys"] | None,
    ) -> Float[Tensor, "batch heads time dim"]:
        return self.weights(x, query, key, mask) @ shared(value, query.shape[1])

    def weights(
        self,
        x: Float[Tensor, "batch time hidden"],
        query: Float[Tensor, "batch heads time dim"],
        key: Float[Tensor, "batch kv_heads keys dim"],
        mask: Bool[Tensor, "batch 1 time keys"] | None,
    ) -> Float[Tensor, "batch heads time keys"]:
        seen = self.seen(query, key, mask)
        return (self.scores(query, key).relu() / seen.sum(-1, keepdim=True)).masked_fill(~seen, 0.0)
