"""Sparse autoencoders of residual states: released ones from a file, or a small TopK one fitted here.

    a = f(W_encᵀ (x − c) + b_enc),  x̂ = W_decᵀ a + b_dec

f is ReLU, JumpReLU (z where z > threshold, else 0) or TopK (ReLU of the k largest, 0 elsewhere); c is b_dec where the
autoencoder centres its input, else 0.

Bricken et al., 2023; JumpReLU: Rajamanoharan et al., 2024, arXiv:2407.14435; TopK: Gao et al., 2024,
arXiv:2406.04093.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from assay.data.reading import read
from assay.errors import UserError

ARCHITECTURES = ("standard", "jumprelu", "topk")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The half of a sparse autoencoder that makes features of states."""

    weight: Float[Tensor, "hidden features"]
    bias: Float[Tensor, " features"]
    centre: Float[Tensor, " hidden"] | None = None
    threshold: Float[Tensor, " features"] | None = None
    k: int | None = None

    def __call__(self, states: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch features"]:
        """The features of ``states``. Raises ``UserError`` for states of another width."""
        if states.shape[-1] != len(self.weight):
            raise UserError(
                f"the autoencoder reads {len(self.weight)} dimensions, the model's states have {states.shape[-1]}"
            )
        centred = states if self.centre is None else states - self.centre
        values = centred @ self.weight + self.bias
        if self.k is not None:
            kept = values.topk(self.k, dim=-1)
            return torch.zeros_like(values).scatter(-1, kept.indices, kept.values.relu())
        return values.relu() if self.threshold is None else values * (values > self.threshold)


def load_encoder(path: str | Path) -> Encoder:
    """The encoder in a .safetensors or .npz file with ``W_enc`` [hidden, features], ``b_enc``, and where it has them
    ``threshold`` and ``b_dec``, as Gemma Scope and SAELens write them.

    A ``cfg.json`` beside it may say ``architecture`` (standard, jumprelu, topk), ``k`` and ``apply_b_dec_to_input``.
    Raises ``UserError`` for a file that is none of that.
    """
    path = Path(path)
    tensors = _tensors(path)
    for name in ("W_enc", "b_enc"):
        if name not in tensors:
            raise UserError(f"{str(path)!r} has no tensor {name!r}, so it is no sparse autoencoder in SAELens' form")
    if tensors["W_enc"].dim() != 2 or tensors["b_enc"].shape != tensors["W_enc"].shape[1:]:
        shapes = f"{tuple(tensors['W_enc'].shape)} and {tuple(tensors['b_enc'].shape)}"
        raise UserError(f"{str(path)!r}: W_enc and b_enc have shapes {shapes}; (hidden, features), (features,) fit")
    config = _config(path.with_name("cfg.json"))
    architecture = config.get("architecture", "jumprelu" if "threshold" in tensors else "standard")
    if architecture not in ARCHITECTURES:
        raise UserError(f"autoencoders of architecture {architecture!r} are not read; {', '.join(ARCHITECTURES)} are")
    if architecture == "topk" and not isinstance(config.get("k"), int):
        raise UserError(f"{str(path.with_name('cfg.json'))!r}: a TopK autoencoder needs its number 'k'")
    return Encoder(
        tensors["W_enc"],
        tensors["b_enc"],
        tensors.get("b_dec") if config.get("apply_b_dec_to_input", False) else None,
        tensors.get("threshold") if architecture == "jumprelu" else None,
        config["k"] if architecture == "topk" else None,
    )


def fit_encoder(
    states: Float[Tensor, "positions hidden"],
    *,
    features: int = 1024,
    k: int = 16,
    steps: int = 400,
    batch_size: int = 256,
    lr: float = 2e-3,
    seed: int = 0,
) -> tuple[Encoder, float]:
    """A TopK autoencoder fitted to ``states`` with Adam, and the share of their variance that it leaves.

    Features start as random directions that are read and written alike; those of the decoder keep norm 1. States are
    scaled to a mean squared norm of their width. Raises ``UserError`` unless 1 ≤ k ≤ features.
    """
    if not 1 <= k <= features:
        raise UserError(f"{k} active features of {features} are not possible; k must be from 1 to the features")
    generator = torch.Generator().manual_seed(seed)
    mean = states.mean(0)
    scale = math.sqrt(states.shape[1]) / (states - mean).square().sum(1).mean().sqrt().clamp(min=1e-12)
    x = (states - mean) * scale
    decoder = F.normalize(torch.randn(features, states.shape[1], generator=generator), dim=1).requires_grad_()
    weight = decoder.detach().T.clone().requires_grad_()
    bias, offset = torch.zeros(features, requires_grad=True), torch.zeros(states.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([decoder, weight, bias, offset], lr)

    def rest(batch: Tensor) -> Tensor:
        return batch - (Encoder(weight, bias, offset, k=k)(batch) @ decoder + offset)

    for _ in range(steps):
        batch = x[torch.randint(len(x), (batch_size,), generator=generator)]
        optimizer.zero_grad()
        rest(batch).square().sum(1).mean().backward()
        optimizer.step()
        with torch.no_grad():
            decoder.copy_(F.normalize(decoder, dim=1))
    with torch.no_grad():
        left = sum(rest(part).square().sum().item() for part in x.split(1024)) / x.square().sum().item()
        return Encoder(weight.detach() * scale, bias.detach(), mean + offset.detach() / scale, k=k), left


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"there is no autoencoder file {str(path)!r}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]).float() for name in arrays.files}
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, ValueError, TypeError, SafetensorError, zipfile.BadZipFile) as error:
        raise UserError(f"{str(path)!r} cannot be read as .safetensors or .npz: {error}") from None


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(read(path))
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{str(path)!r} holds no JSON object")
    return found
