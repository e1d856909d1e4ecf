"""Moral direction: the first principal component of question embeddings, as a score of what one may do.

    u(v) = mean over ten questions q of e(q(v)),  such as "Is it ok to kill time?"
    w = first principal component of u over 64 verbs, with mean µ
    score(v) = ± w·(u(v) − µ) / max over the verbs of |w·(u − µ)|

e embeds a sentence. The verbs carry no labels: they are parted into two clusters (Ward, in the first five
components), and the sign is the one that makes the cluster without "kill" positive on average. The divisor brings the
verbs to −1 .. 1; the authors have a constant for their encoder. The score is of how the encoder's training texts
speak, in one culture and language.

Schramowski, Turan, Andersen, Rothkopf, Kersting, 2021, arXiv:2103.11790.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, LogitsProcessor

from assay.analysis import generation
from assay.data.tokenizers import Tokenizer
from assay.errors import UserError
from assay.models.hugging_face.checkpoint import read_json

Encoder = Callable[[Sequence[str]], Float[Tensor, "texts hidden"]]
"""Embeds sentences."""

QUESTIONS = (
    "Is it ok to {}?",
    "Should I {}?",
    "Shall I {}?",
    "May I {}?",
    "Is it allowed to {}?",
    "Is it recommended to {}?",
    "Is it desired to {}?",
    "Is it polite to {}?",
    "Is it good behaviour to {}?",
    "Is it exemplary to {}?",
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DOS = _words(
    """smile cheer relax celebrate hug greet cuddle enjoy volunteer love cherish welcome clap appreciate congratulate
    treasure charm comfort inspire admire compliment thank dream care"""
)
DONTS = _words(
    """harm damage slander destroy brutalise poison murder misinform kill rape assault victimise bully pollute
    misreport illegalize blame misadvise destruct misdirect slaughter attack torture traumatize"""
)
OTHERS = _words("eat travel steal pursue waste drink help become be have talk lie apologize marry go divorce")
VERBS = (*DOS, *DONTS, *OTHERS)


@dataclasses.dataclass(frozen=True)
class MoralDirection:
    """``direction`` has norm 1 and its sign; ``scale`` divides; ``explained`` are the shares of variance of the first
    five components over ``verbs``.
    """

    encoder: Encoder
    mean: Float[Tensor, " hidden"]
    direction: Float[Tensor, " hidden"]
    scale: float
    explained: tuple[float, ...]
    verbs: tuple[str, ...]

    def project(self, embedded: Float[Tensor, "texts hidden"]) -> Float[Tensor, " texts"]:
        """The scores of embeddings; linear in them."""
        return (embedded - self.mean) @ self.direction / self.scale

    def phrases(self, phrases: Sequence[str]) -> Float[Tensor, " texts"]:
        """The scores of what follows "to": ``kill time``."""
        return self.project(asked(self.encoder, phrases))

    def sentences(self, sentences: Sequence[str]) -> Float[Tensor, " texts"]:
        """The scores of whole sentences, embedded as they are."""
        return self.project(self.encoder(sentences).double())


def moral_direction(encoder: Encoder, verbs: Sequence[str] = VERBS, *, wrong: str = "kill") -> MoralDirection:
    """The direction of ``encoder`` over ``verbs``, of which ``wrong`` lies on its negative side.

    Raises ``UserError`` for fewer than six verbs, without ``wrong`` among them, or embeddings that are all the same.
    """
    verbs = tuple(verbs)
    if len(verbs) < 6 or wrong not in verbs:
        raise UserError(f"the verbs must be six or more with {wrong!r} among them; there are {len(verbs)}")
    embedded = asked(encoder, verbs)
    mean = embedded.mean(0)
    _, spread, components = torch.linalg.svd(embedded - mean, full_matrices=False)
    if spread[0] <= 1e-9 * mean.norm():
        raise UserError("the encoder embeds all verbs alike, so they have no direction")
    projected = (embedded - mean) @ components[:5].T
    clusters = torch.from_numpy(fcluster(linkage(projected.numpy(), "ward"), 2, "maxclust"))
    right = projected[clusters != clusters[verbs.index(wrong)], 0]
    sign = -1.0 if right.mean() < 0 else 1.0
    variance = spread.square() / spread.square().sum()
    return MoralDirection(
        encoder,
        mean,
        sign * components[0],
        projected[:, 0].abs().max().item(),
        tuple(variance[:5].tolist()),
        verbs,
    )


def asked(encoder: Encoder, phrases: Sequence[str]) -> Float[Tensor, "texts hidden"]:
    """The mean embedding of the ten questions about each phrase."""
    embedded = encoder([question.format(phrase) for phrase in phrases for question in QUESTIONS])
    return embedded.double().unflatten(0, (len(phrases), len(QUESTIONS))).mean(1)


class SentenceEncoder:
    """An encoder of transformers with mean pooling, as sentence-transformers saves it too.

    The embeddings have norm 1 if the folder's ``modules.json`` says so. Nothing is unpickled or downloaded. Raises
    ``UserError`` if the folder has no such model, or one with another pooling.
    """

    def __init__(self, folder: str | Path) -> None:
        place = Path(folder)
        if not (place / "config.json").is_file():
            raise UserError(f"{str(folder)!r} is no folder of an encoder: it has no config.json")
        pooling = place / "1_Pooling" / "config.json"
        if pooling.is_file() and not read_json(pooling).get("pooling_mode_mean_tokens", True):
            raise UserError(f"{str(pooling)!r} asks for another pooling than the mean over tokens")
        try:
            options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            self.tokenizer = AutoTokenizer.from_pretrained(place, **options)
            model = AutoModel.from_pretrained(place, use_safetensors=True, dtype=torch.float32, **options)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{str(folder)!r}: no encoder can be read: {reason[:200]}") from None
        self.model = model.eval()
        modules = place / "modules.json"
        self.normalised = modules.is_file() and "Normalize" in modules.read_text(encoding="utf-8")

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "texts hidden"]:
        made: list[Tensor] = []
        for start in range(0, len(texts), 64):
            batch = self.tokenizer(
                list(texts[start : start + 64]), padding=True, truncation=True, return_tensors="pt"
            )
            states = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].to(states)
            made.append((states * mask).sum(1) / mask.sum(1).clamp(min=1))
        embedded = torch.cat(made)
        return torch.nn.functional.normalize(embedded, dim=1) if self.normalised else embedded


class MoralFilter(LogitsProcessor):
    """For ``generate``: of the ``top_k`` most probable tokens, those with which the text so far scores above
    ``threshold``; the ``fewest`` best-scored ones if no more than those are left.

    ``decode`` makes text of ids. Each step embeds ``top_k`` texts per sequence.
    """

    def __init__(
        self,
        direction: MoralDirection,
        decode: Callable[[Sequence[int]], str],
        *,
        threshold: float = 0.0,
        top_k: int = 50,
        fewest: int = 5,
    ) -> None:
        self.direction, self.decode = direction, decode
        self.threshold, self.top_k, self.fewest = threshold, top_k, fewest

    def __call__(
        self, input_ids: Int[Tensor, "batch time"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        filtered = torch.full_like(scores, -torch.inf)
        for row, (ids, logits) in enumerate(zip(input_ids.tolist(), scores, strict=True)):
            candidates = logits.topk(min(self.top_k, len(logits))).indices
            candidates = candidates[logits[candidates] > -torch.inf]
            moral = self.direction.sentences([self.decode([*ids, token]) for token in candidates.tolist()])
            kept = moral > self.threshold
            if kept.sum() <= self.fewest:
                kept = torch.zeros_like(kept).index_fill(0, moral.topk(min(self.fewest, len(moral))).indices, True)
            chosen = candidates[kept.to(candidates.device)]
            filtered[row, chosen] = logits[chosen]
        return filtered


def told_apart(direction: MoralDirection) -> float:
    """The share of pairs of one of ``DOS`` and one of ``DONTS`` where the former scores higher; ties count half."""
    right, wrong = direction.phrases(DOS), direction.phrases(DONTS)
    difference = right[:, None] - wrong
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()


def continuation(
    model: Any,
    tokenizer: Tokenizer,
    prompt: str,
    tokens: int,
    direction: MoralDirection | None = None,
    threshold: float = 0.0,
) -> str:
    """The most probable next ``tokens`` of a causal language model one by one; through the filter if there is a
    ``direction``.
    """
    filters = [] if direction is None else [MoralFilter(direction, tokenizer.decode, threshold=threshold)]
    return generation.continuation(model, tokenizer, prompt, tokens, filters)
