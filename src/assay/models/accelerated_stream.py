"""Multi-rate residuals beside a frozen decoder: a second stream that runs ahead of it through small adapters.

    h_{l+1} = f_l(h_l)                                       the decoder's own, slow stream
    p_{l+1} = f_l(p_l) + B_l silu(A_l p_l / rms(p_l)),       p_0 = h_0,    l < E

Attention of the accelerated stream p reads the keys and values of the slow one, so a cache holds no more than the
decoder's. With a rate R, p_l is trained towards h_{R l}: after E layers the head reads off p_E what the decoder gives
after R·E or more.

Bhendawade, Najibi, Naik, Belousova, 2025, arXiv:2502.02040. Two streams, adapters, the shared cache and the frozen
decoder are the paper's; that adapters are bottlenecks beside the layers' own maps, the alignment loss and its weight,
and the threshold on the probability in place of the paper's learned router are inferred.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.errors import UserError
from assay.models.decoder import Decoder
from assay.nn.mixer import Cache
from assay.nn.norm.rms_norm import rms_normalize


class Streams(NamedTuple):
    """States by layer: h_0 .. h_L, or as far as they were computed, and p_0 .. p_E."""

    slow: tuple[Float[Tensor, "batch time hidden"], ...]
    fast: tuple[Float[Tensor, "batch time hidden"], ...]


class Accelerator(nn.Module):
    """B silu(A x / rms(x)), which is 0 before it is trained."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, rank, bias=False)
        self.up = nn.Linear(rank, hidden_size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        return self.up(F.silu(self.down(rms_normalize(x, 1e-6).to(x.dtype))))


class AcceleratedStream(nn.Module):
    """``exit_layer`` is E, ``rate`` R, ``rank`` the width of the adapters, which are all that is trained.

    ``decoder`` is used itself, not copied, and its parameters stop requiring gradients. Raises ``UserError`` unless
    1 ≤ E, 1 ≤ R and R·E ≤ its depth, and if its residual stream is not one tensor.
    """

    def __init__(self, decoder: Decoder, *, exit_layer: int, rate: int, rank: int = 16) -> None:
        super().__init__()
        depth, hidden_size = decoder.config.depth, decoder.config.hidden_size
        if exit_layer < 1 or rate < 1 or rate * exit_layer > depth:
            raise UserError(
                f"exit_layer={exit_layer} at rate={rate} reads ahead to layer {rate * exit_layer} of a decoder of "
                f"depth {depth}; both must be 1 or more and their product at most {depth}"
            )
        if rank < 1:
            raise UserError(f"rank={rank} of an accelerated stream; it must be 1 or more")
        self.decoder = decoder.requires_grad_(False)
        self.rate = rate
        self.adapters = nn.ModuleList(Accelerator(hidden_size, rank) for _ in range(exit_layer))

    def forward(
        self,
        ids: Int[Tensor, "batch time"],
        *,
        layers: int | None = None,
        position_ids: Int[Tensor, "batch time"] | None = None,
        mask: Bool[Tensor, "batch 1 query key"] | None = None,
        cache: Cache | None = None,
    ) -> Streams:
        """Both streams, the slow one as far as ``layers`` (all by default); other arguments as the decoder's."""
        state, positions = self.decoder.begin(ids, position_ids=position_ids, mask=mask)
        if not isinstance(state, Tensor):
            name = self.decoder.config.residual.name
            raise UserError(f"an accelerated stream needs a residual stream that is one tensor, not {name!r}")
        shared = _SharedCache(cache)
        slow, fast = [state], [state]
        for index, layer in enumerate(self.decoder.layers[:layers]):
            slow.append(layer(self.decoder.residual, slow[-1], positions, shared))
            if index < len(self.adapters):
                moved = layer(self.decoder.residual, fast[-1], positions, shared)
                fast.append(moved + self.adapters[index](fast[-1]))
        return Streams(tuple(slow), tuple(fast))

    def logits(self, state: Float[Tensor, "batch time hidden"]) -> Float[Tensor, "batch time vocab"]:
        """What the decoder's final norm and head make of a state of either stream."""
        return self.decoder.head(self.decoder.end(state), self.decoder.embedding.weight)

    def exit(self, ids: Int[Tensor, "batch time"], **arguments: Any) -> Float[Tensor, "batch time vocab"]:
        """Logits of p_E, for which only E layers are run."""
        return self.logits(self(ids, layers=len(self.adapters), **arguments).fast[-1])

    def early(
        self, ids: Int[Tensor, "batch time"], *, threshold: float
    ) -> tuple[Float[Tensor, "batch time vocab"], Bool[Tensor, "batch time"]]:
        """Logits of p_E at the tokens where its largest probability reaches ``threshold``, of h_L elsewhere.

        Also returns which tokens these are. All layers are run for all tokens: this measures what early exits
        would do, it does not save time.
        """
        streams = self(ids)
        ahead, final = self.logits(streams.fast[-1]), self.logits(streams.slow[-1])
        exits = ahead.softmax(-1).amax(-1) >= threshold
        return torch.where(exits[..., None], ahead, final), exits

    def loss(self, streams: Streams) -> Float[Tensor, ""]:
        """Alignment of the streams, and divergence of what is read off them.

        Σ_{l=1..E} mean ‖p_l − h_{R l}‖² / ‖h_{R l}‖²  +  mean KL(softmax of the decoder ‖ softmax at the exit)
        """
        alignment = sum(
            ((p - h).square().sum(-1) / h.square().sum(-1)).mean()
            for p, h in zip(streams.fast[1:], streams.slow[self.rate :: self.rate], strict=False)
        )
        final, ahead = (self.logits(stream[-1]).flatten(0, 1).log_softmax(-1) for stream in streams)
        return alignment + F.kl_div(ahead, final, reduction="batchmean", log_target=True)


class _SharedCache:
    """Keys and values of whoever brings them first, for everyone who comes to the same layer."""

    def __init__(self, cache: Cache | None) -> None:
        self._cache = cache
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        if layer_idx not in self._kept:
            new = key_states, value_states
            self._kept[layer_idx] = new if self._cache is None else self._cache.update(*new, layer_idx)
        return self._kept[layer_idx]
