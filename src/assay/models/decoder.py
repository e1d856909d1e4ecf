"""A decoder-only transformer, assembled from slots."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.errors import UserError
from assay.models.config import ModelConfig
from assay.nn.linear import replace_linears
from assay.nn.mixer import Cache
from assay.nn.norm import NormPlace
from assay.nn.placement import Placement
from assay.nn.position import Positions
from assay.nn.residual import ResidualStream


class Sublayer(nn.Module):
    """A branch between its reading from and its writing to the residual stream, with the norms around it."""

    def __init__(self, branch: nn.Module, placement: Placement, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.branch = branch
        self.input_norm = make_norm(config, "input") if placement.input else None
        self.input_scale = placement.input_scale
        self.output_norm = make_norm(config, "output") if placement.output else None
        self.stream_norm = make_norm(config, "stream") if placement.stream else None

    def forward(self, residual: ResidualStream, state: Any, *arguments: Any) -> Any:
        x = residual.read(state, self.index)
        if self.input_norm is not None:
            x = self.input_norm(x)
        if self.input_scale != 1.0:
            x = self.input_scale * x
        y = self.branch(x, *arguments)
        if self.output_norm is not None:
            y = self.output_norm(y)
        state = residual.write(state, y, self.index)
        if self.stream_norm is not None:
            state = residual.normalize(state, self.stream_norm)
        return state


class Layer(nn.Module):
    """A mixer and an MLP, each on the residual stream."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        placement = config.placement.build().at(index, config.depth)
        mixer = config.mixer.at(index).build(
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            layer=index,
            norm=lambda size: make_norm(config, "heads", size),
        )
        mlp = config.mlp.at(index).build(hidden_size=config.hidden_size, intermediate_size=config.intermediate_size)
        for branch in (mixer, mlp):
            replace_linears(branch, lambda linear, place: config.linear.build(linear=linear, place=place))
        self.mixer = Sublayer(mixer, placement, config, 2 * index)
        self.mlp = Sublayer(mlp, placement, config, 2 * index + 1)

    def forward(self, residual: ResidualStream, state: Any, positions: Positions, cache: Cache | None) -> Any:
        state = self.mixer(residual, state, positions, cache)
        return self.mlp(residual, state)


class Decoder(nn.Module):
    """Token ids to logits. ``config.vocab_size`` and ``config.max_length`` must be set."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size is None or config.max_length is None:
            raise UserError("a decoder needs model.vocab_size and model.max_length")
        self.config = config
        rule = config.placement.build()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = config.position.build(
            hidden_size=config.hidden_size, head_dim=config.head_dim, max_length=config.max_length
        )
        self.embedding_norm = make_norm(config, "embedding") if rule.embedding_norm else None
        self.residual = config.residual.build(
            hidden_size=config.hidden_size, num_sublayers=2 * config.depth, depth=config.depth
        )
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.depth))
        self.final_norm = make_norm(config, "final") if rule.final_norm else None
        self.head = config.head.build(hidden_size=config.hidden_size, vocab_size=config.vocab_size)

    def forward(
        self,
        ids: Int[Tensor, "batch time"],
        *,
        position_ids: Int[Tensor, "batch time"] | None = None,
        mask: Bool[Tensor, "batch 1 query key"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Logits.

        ``position_ids`` count from 0 unless given. ``mask`` is true where a query may see a key and None for a
        causal pass over a whole sequence; with a cache that holds earlier tokens it must be given.
        """
        x = self.hidden(ids, position_ids=position_ids, mask=mask, cache=cache)
        return self.head(x, self.embedding.weight)

    def hidden(
        self,
        ids: Int[Tensor, "batch time"],
        *,
        position_ids: Int[Tensor, "batch time"] | None = None,
        mask: Bool[Tensor, "batch 1 query key"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch time hidden"]:
        """What the head sees: the residual stream after the last layer, normed."""
        state, positions = self.begin(ids, position_ids=position_ids, mask=mask)
        for layer in self.layers:
            state = layer(self.residual, state, positions, cache)
        return self.end(state)

    def begin(
        self,
        ids: Int[Tensor, "batch time"],
        *,
        position_ids: Int[Tensor, "batch time"] | None = None,
        mask: Bool[Tensor, "batch 1 query key"] | None = None,
    ) -> tuple[Any, Positions]:
        """The residual stream's state before the first layer, and what the layers need to know of positions."""
        if position_ids is None:
            position_ids = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.position.embed(self.embedding(ids), position_ids)
        positions = Positions(self.position.rotation(position_ids, _compute_dtype(x)), mask)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return self.residual.start(x), positions

    def end(self, state: Any) -> Float[Tensor, "batch time hidden"]:
        """What the head sees of a state of the residual stream."""
        x = self.residual.finish(state)
        return x if self.final_norm is None else self.final_norm(x)


def make_norm(config: ModelConfig, place: NormPlace, size: int | None = None) -> nn.Module:
    """A norm of the configured kind, over the hidden size unless another is given."""
    return config.norm.build(hidden_size=size or config.hidden_size, depth=config.depth, place=place)


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    autocast = not x.is_meta and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else x.dtype
