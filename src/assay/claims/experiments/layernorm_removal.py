"""LayerNorm removal on small models in the form of GPT-2, trained on the bytes of Python's own library."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from assay.claims.experiments import experiments
from assay.data import DataConfig
from assay.data.windows import TokenData, prepare
from assay.errors import AssayError
from assay.models import Decoder, ModelConfig
from assay.models.decoder import Layer
from assay.models.initialization import initialize
from assay.nn.norm.layer_norm import LayerNorm
from assay.transforms.norm_sites import fake, spread
from assay.transforms.surgery.layernorm_removal import LayerNormRemoval, RemovalTuning
from assay.transforms.tuning import Tuning, held_out, tune


@experiments.register("layernorm-removal")
def layernorm_removal(
    seed: int,
    *,
    depth: int = 4,
    hidden_size: int = 128,
    sequence_length: int = 128,
    batch_size: int = 4,
    train_steps: int = 800,
    steps: int = 140,
    start: int = 20,
    gaps: tuple[int, int, int] = (5, 5, 5),
) -> dict[str, float]:
    """Nats per token (a byte) of held-out text: ``trained`` and, from there on, ``kept``, ``gradual``, ``at_once``.

    The model goes on with as many steps on the same batches: with its norms, while they are removed one after
    another, and while they are removed all at once. A model whose loss is no longer finite has NaN.
    """
    size = {"batch_size": batch_size, "sequence_length": sequence_length}
    trained, data = _train(seed, train_steps, {"depth": depth, "hidden_size": hidden_size}, size)
    tuning = RemovalTuning.parse({**size, "steps": steps, "lr": trained.config.learning_rate(), "seed": seed + 1})

    def loss(model: Decoder) -> float:
        return held_out(model, data, sequence_length=sequence_length).nats_per_token

    def without_norms(gaps: tuple[int, int, int]) -> float:
        try:
            return loss(LayerNormRemoval(start=start, gaps=gaps, tuning=tuning)(copy.deepcopy(trained), data))
        except AssayError:
            return math.nan

    kept = copy.deepcopy(trained)
    tune(kept, data, tuning)
    return {
        "trained": loss(trained),
        "kept": loss(kept),
        "gradual": without_norms(gaps),
        "at_once": without_norms((0, 0, 0)),
    }


@experiments.register("logit-attribution")
def logit_attribution(seed: int, *, train_steps: int = 200, steps: int = 60, tokens: int = 2048) -> dict[str, float]:
    """How far attributions of logits are from effects, ``with_norms`` and ``without_norms``.

    The direct effect of a component is what the logit of the next token loses if the component's output is taken out
    of the last stream; its attribution is what the head makes of that output alone, the last norm's divisor held at
    its value. The distance is Σ |attribution − effect| / Σ |effect| over components and tokens.
    """
    size = {"batch_size": 4, "sequence_length": 64}
    model, data = _train(seed, train_steps, {"depth": 2, "hidden_size": 64}, size)
    inputs, targets = next(data.evaluation(64, tokens // 64))
    ids, following = inputs.to(model.embedding.weight.device), targets.clamp(min=0).to(model.embedding.weight.device)
    before = _distance(model, ids, following)
    tuning = RemovalTuning.parse({**size, "steps": steps, "seed": seed})
    removed = LayerNormRemoval(start=5, tuning=tuning)(model, data)
    return {"with_norms": before, "without_norms": _distance(removed, ids, following)}


def _train(seed: int, steps: int, shape: dict[str, int], size: dict[str, int]) -> tuple[Decoder, TokenData]:
    data = prepare(DataConfig.parse({"sequence_length": size["sequence_length"], "eval_bytes": 65536}))
    fields: dict[str, Any] = {
        "vocab_size": data.vocab_size,
        "max_length": size["sequence_length"],
        "norm": "layer-norm",
        "mixer": {"name": "softmax", "qkv_bias": True, "output_bias": True},
        "mlp": {"name": "gelu", "bias": True},
        "position": "learned",
        "head": "tied",
    }
    config = ModelConfig.parse({**shape, **fields})
    model = Decoder(config)
    initialize(model, seed, config.init_std)
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    tune(model, data, Tuning.parse({**size, "steps": steps, "lr": config.learning_rate(), "seed": seed}))
    return model, data


@torch.no_grad()
def _distance(model: Decoder, ids: Int[Tensor, "batch time"], targets: Int[Tensor, "batch time"]) -> float:
    state, _ = model.begin(ids)
    written: list[Tensor] = [state]
    hooks = [
        sublayer.branch.register_forward_hook(lambda branch, given, y: written.append(y))
        for layer in cast("list[Layer]", list(model.layers))
        for sublayer in (layer.mixer, layer.mlp)
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    stream, norm = torch.stack(written).sum(0), model.final_norm

    def logit(x: Tensor) -> Tensor:
        return model.head(x, model.embedding.weight).gather(-1, targets[..., None])

    def normed(x: Tensor) -> Tensor:
        return x if norm is None else norm(x)

    def frozen(x: Tensor) -> Tensor:
        return fake(norm, x, spread(norm, stream)[..., None]) if isinstance(norm, LayerNorm) else normed(x)

    whole, nothing = logit(normed(stream)), logit(frozen(torch.zeros_like(stream)))
    apart = total = 0.0
    for part in written:
        effect = whole - logit(normed(stream - part))
        apart += float((logit(frozen(part)) - nothing - effect).abs().sum())
        total += float(effect.abs().sum())
    return apart / total
