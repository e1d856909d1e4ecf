"""The dictionary itself: encoder, two decoders, and what is kept of a code."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from assay.data.reading import read
from assay.errors import UserError
from assay.files import disk_errors

Kind = Literal["batch-topk", "l1"]
WEIGHTS, ABOUT = "crosscoder.safetensors", "crosscoder.json"


class Crosscoder(nn.Module):
    """Codes of pairs of activations, index 0 the first model's and 1 the second's.

    Every latent starts with one direction of norm 1 in both decoders and the encoder.

    Args:
        hidden_size: features of an activation.
        latents: size of the dictionary.
        kind: what makes codes sparse, ``batch-topk`` or ``l1``.
        k: latents per pair that ``batch-topk`` keeps, on average over a batch.
        seed: decides the directions.

    Attributes:
        threshold: what s must exceed to be kept outside of training; below 0 until training has set it.
        scale: what the two models' activations are multiplied by before anything else.

    Raises ``UserError`` for an unknown kind or sizes that do not fit.
    """

    threshold: Tensor
    scale: Tensor

    def __init__(
        self, hidden_size: int, latents: int, *, kind: Kind = "batch-topk", k: int = 100, seed: int = 0
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise UserError(f"unknown kind of crosscoder {kind!r}; known: {', '.join(get_args(Kind))}")
        if hidden_size < 1 or latents < 1:
            raise UserError(f"a crosscoder of {latents} latents for {hidden_size} features; both are 1 at least")
        if kind == "batch-topk" and not 1 <= k <= latents:
            raise UserError(f"k is {k}, but of {latents} latents 1 to {latents} can be kept")
        self.hidden_size, self.latents, self.kind, self.k = hidden_size, latents, kind, k
        directions = torch.randn(latents, hidden_size, generator=torch.Generator().manual_seed(seed))
        directions = directions / directions.norm(dim=-1, keepdim=True)
        self.decoder = nn.Parameter(directions.repeat(2, 1, 1))
        self.encoder = nn.Parameter(directions.T.repeat(2, 1, 1))
        self.encoder_bias = nn.Parameter(torch.zeros(latents))
        self.decoder_bias = nn.Parameter(torch.zeros(2, hidden_size))
        self.register_buffer("threshold", torch.tensor(-1.0))
        self.register_buffer("scale", torch.ones(2))

    def codes(self, x: Float[Tensor, "batch 2 hidden"]) -> Float[Tensor, "batch latents"]:
        """f with nothing left out yet."""
        return torch.relu(torch.einsum("bmh,mhl->bl", x, self.encoder) + self.encoder_bias)

    def norms(self) -> Float[Tensor, "2 latents"]:
        """‖Dₘⱼ‖."""
        return self.decoder.norm(dim=-1)

    def kept(self, codes: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch latents"]:
        """What is kept of ``codes`` outside of training."""
        if self.kind == "l1":
            return codes
        return codes * (codes * self.norms().sum(0) > self.threshold)

    def encode(self, x: Float[Tensor, "batch 2 hidden"]) -> Float[Tensor, "batch latents"]:
        """f of ``x``, as it is used."""
        return self.kept(self.codes(x))

    def decode(self, codes: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch 2 hidden"]:
        """x̂."""
        return torch.einsum("bl,mlh->bmh", codes, self.decoder) + self.decoder_bias

    def differences(self) -> Float[Tensor, " latents"]:
        """Δ: 1 for latents of the second model only, 0 for the first's, ½ for those with equal norms."""
        first, second = self.norms().detach()
        return (1 + (second - first) / torch.maximum(first, second).clamp_min(torch.finfo(first.dtype).tiny)) / 2

    def save(self, folder: str | Path, report: dict[str, Any]) -> None:
        """Write weights, sizes and ``report`` to a folder that is new or empty, whole or not at all.

        Raises ``UserError`` if there is something in it, ``AssayError`` if it cannot be written.
        """
        folder = Path(folder).expanduser().resolve()
        check_free(folder)
        about = {"hidden_size": self.hidden_size, "latents": self.latents, "kind": self.kind, "k": self.k}
        written = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
        with disk_errors(folder):
            try:
                written.mkdir(parents=True)
                save_file(
                    {name: tensor.contiguous() for name, tensor in self.state_dict().items()}, written / WEIGHTS
                )
                text = json.dumps({"crosscoder": about, "report": report}, indent=1, allow_nan=False)
                (written / ABOUT).write_text(text + "\n", encoding="utf-8")
                if folder.is_dir():
                    folder.rmdir()
                written.rename(folder)
            finally:
                shutil.rmtree(written, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What ``save`` wrote. Raises ``UserError`` if it cannot be read."""
        folder = Path(folder).expanduser()
        try:
            found = cls(**json.loads(read(folder / ABOUT))["crosscoder"])
            found.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{str(folder)!r} holds no crosscoder: {' '.join(str(error).split())[:120]}") from None
        return found


def batch_top_k(
    codes: Float[Tensor, "batch latents"], scores: Float[Tensor, "batch latents"], k: int
) -> Float[Tensor, "batch latents"]:
    """``codes`` where ``scores`` are among the k · batch largest of all of them, else 0."""
    chosen = scores.flatten().topk(k * len(scores), sorted=False).indices
    kept = torch.zeros_like(codes).flatten()
    return kept.index_copy(0, chosen, codes.flatten()[chosen]).view_as(codes)


def check_free(folder: Path) -> None:
    """Raises ``UserError`` unless the folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{str(folder)!r} is there already; name a new or an empty folder")
