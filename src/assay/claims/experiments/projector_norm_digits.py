"""Digits described in words by a small pre-norm decoder, with and without a norm after the image projector."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from assay.claims.digits import batches, digits
from assay.claims.experiments import experiments
from assay.models import ModelConfig
from assay.models.decoder import Decoder
from assay.models.initialization import initialize
from assay.nn.norm.projector_norm import ProjectorNorm, rotation, text_norm

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "".join(sorted(set("".join(WORDS))))
START, END, VOCAB = len(LETTERS), len(LETTERS) + 1, len(LETTERS) + 2
DESCRIPTIONS = torch.tensor([[START, *map(LETTERS.index, word), *[END] * (6 - len(word))] for word in WORDS])
"""Per digit the letters of its word between a start and an end token, filled up with end tokens."""

PATCHES = 16
INIT_STD = 0.02
ARMS = ("none", "default", "aligned")
RATES = (4e-3, 8e-3)


class Describer(nn.Module):
    """Image patches through frozen random features and a linear projector, then text, in one decoder.

    The features have length ``norm_ratio``, so that projected patches start with about ``norm_ratio`` times the norm
    of text embeddings. ``arm`` is what follows the projector: nothing, or one of the norms of ``ARMS``.
    """

    features: Tensor

    def __init__(self, arm: str, *, seed: int, norm_ratio: float, depth: int, hidden_size: int) -> None:
        super().__init__()
        sizes = {"depth": depth, "hidden_size": hidden_size, "num_heads": 4, "vocab_size": VOCAB, "max_length": 32}
        self.decoder = Decoder(ModelConfig.model_validate(sizes))
        self.projector = nn.Linear(64, hidden_size, bias=False)
        initialize(self, seed, INIT_STD)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("features", torch.randn(5, 64, generator=generator))
        self.norm_ratio = norm_ratio
        self.norm: nn.Module = nn.Identity()
        if arm != "none":
            target = None if arm == "default" else text_norm(self.decoder.embedding.weight)
            self.norm = ProjectorNorm(hidden_size, target_norm=target, compensate=arm == "aligned")

    def patches(self, images: Float[Tensor, "batch 8 8"]) -> Float[Tensor, "batch 16 hidden"]:
        values = images.unflatten(1, (4, 2)).unflatten(3, (4, 2)).transpose(2, 3).reshape(-1, PATCHES, 4)
        values = torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)
        encoded = self.norm_ratio * F.normalize(torch.tanh(values @ self.features), dim=-1)
        return self.norm(self.projector(encoded))

    def forward(
        self, images: Float[Tensor, "batch 8 8"], text: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length vocab"]:
        """Logits at the text's positions; the image's patches stand before it."""
        patches = self.patches(images)
        handle = self.decoder.embedding.register_forward_hook(
            lambda module, arguments, embedded: torch.cat([patches, embedded[:, PATCHES:]], dim=1)
        )
        try:
            return self.decoder(F.pad(text, (PATCHES, 0)))[:, PATCHES:]
        finally:
            handle.remove()

    def loss(self, images: Float[Tensor, "batch 8 8"], labels: Int[Tensor, " batch"]) -> Tensor:
        """Mean cross-entropy of the letters and the first end token, in nats."""
        text = DESCRIPTIONS[labels]
        targets = text[:, 1:].masked_fill((text[:, :-1] == END), -100)
        return F.cross_entropy(self(images, text[:, :-1]).flatten(0, 1), targets.flatten())

    def rotations(self, images: Float[Tensor, "batch 8 8"], labels: Int[Tensor, " batch"]) -> tuple[float, float]:
        """Mean angles in radians by which a layer turns image tokens, and text tokens."""
        angles: list[Tensor] = []
        handles = [
            layer.register_forward_hook(lambda module, arguments, after: angles.append(rotation(arguments[1], after)))
            for layer in self.decoder.layers
        ]
        self(images, DESCRIPTIONS[labels][:, :-1])
        for handle in handles:
            handle.remove()
        mean = torch.stack(angles).mean((0, 1))
        return mean[:PATCHES].mean().item(), mean[PATCHES:].mean().item()


@experiments.register("projector-norm-digits")
def projector_norm_digits(
    seed: int,
    *,
    steps: int = 150,
    batch_size: int = 32,
    depth: int = 2,
    hidden_size: int = 64,
    norm_ratio: float = 30.0,
) -> dict[str, float]:
    """By arm, after training: the descriptions' loss on test images, how far a layer turns image and text tokens
    (radians), the ``gap`` |log(image / text)| between the two.

    Arms: ``none``; ``default``, layer norm as it is; ``aligned``, started at the text's norm and with Global Weight
    Compensation. All start from the same weights, see the same data, and get the learning rate of ``RATES`` that is
    best on training images.
    """
    images, labels, test_images, test_labels = digits(seed)
    count = len(test_labels)
    found: dict[str, float] = {}
    for arm in ARMS:
        trained: dict[float, Describer] = {}
        for rate in RATES:
            model = Describer(arm, seed=seed, norm_ratio=norm_ratio, depth=depth, hidden_size=hidden_size)
            _train(model, images, labels, steps=steps, batch_size=batch_size, lr=rate, seed=seed)
            with torch.no_grad():
                trained[model.loss(images[:count], labels[:count]).item()] = model
        model = trained[min(trained)]
        with torch.no_grad():
            found[f"{arm}_loss"] = model.loss(test_images, test_labels).item()
            image, text = model.rotations(test_images, test_labels)
        found |= {f"{arm}_image": image, f"{arm}_text": text, f"{arm}_gap": abs(math.log(image / text))}
    return found


def _train(
    model: Describer, images: Tensor, labels: Tensor, *, steps: int, batch_size: int, lr: float, seed: int
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, cycle_momentum=False)
    for index in batches(len(labels), steps=steps, batch_size=batch_size, seed=seed):
        optimizer.zero_grad()
        model.loss(images[index], labels[index]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
