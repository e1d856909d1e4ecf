"""LOS-Net: what a language model's next-token distributions say of a text, read by a small transformer.

    ℓ_i     = log_softmax(logits_i) over the vocabulary V;  μ_i, σ_i its mean and standard deviation
    T_i     = the K largest of (ℓ_i − μ_i) / σ_i, descending
    a_i     = (ℓ_i[x_{i+1}] − μ_i) / σ_i,  x_{i+1} the actual next token
    r_i     = number of entries of ℓ_i above ℓ_i[x_{i+1}]
    z_i     = [W T_i + b,  a_i · 2 (½ − r_i / V) · u + a_i · v]
    score   = w · transformer([cls, z_1, …, z_N] + positions)_0 + c

A text's signature is (T, a, r); the score's sigmoid is the probability that the text was in the training data, or
that an answer is wrong, whichever the network has learned from labelled texts. Only probabilities are read.

Baselines score a text by its log-probabilities alone: their mean (``loss``), or that of the share of least likely
tokens (``min-k``: Shi et al., 2023, arXiv:2310.16789; ``min-k++``, each standardised by the expectation and deviation
of log p under the model's own distribution: Zhang et al., 2024, arXiv:2404.02936).

Bar-Shalom, Frasca, Lim, Gelberg, Ziser, El-Yaniv, Chechik, Maron, 2025, arXiv:2503.14043.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import PreTrainedModel

from assay.errors import UserError


@dataclasses.dataclass(frozen=True)
class Signatures:
    """Signatures of texts, cut or padded to N tokens; padding has T = a = 0, r = V − 1 and ``real`` False."""

    top: Float[Tensor, "texts tokens top"]
    actual: Float[Tensor, "texts tokens"]
    rank: Int[Tensor, "texts tokens"]
    real: Bool[Tensor, "texts tokens"]
    log_probability: Float[Tensor, "texts tokens"]
    """ln p of the actual token; 0 at padding."""
    expected: Float[Tensor, "texts tokens"]
    """Σ p ln p of the distribution; 0 at padding."""
    deviation: Float[Tensor, "texts tokens"]
    """The standard deviation of ln p under p; 1 at padding."""
    vocab_size: int

    def __len__(self) -> int:
        return len(self.actual)

    def __getitem__(self, texts: Int[Tensor, " chosen"]) -> Signatures:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        chosen: dict[str, Any] = {name: x[texts] for name, x in fields.items() if isinstance(x, Tensor)}
        return dataclasses.replace(self, **chosen)


def signature(
    logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"], *, top: int = 1000, length: int = 100
) -> Signatures:
    """The signature of one text from the logits at each position and the tokens that came next.

    ``top`` is K, at most the vocabulary. Raises ``UserError`` if there is no token, or K or the length is below 1.
    """
    if not len(targets):
        raise UserError("a signature needs at least one token with one before it; the text is too short")
    if top < 1 or length < 1:
        raise UserError(f"a signature of {length} tokens and {top} probabilities is empty; 1 of each is the least")
    logits, targets = logits[:length].double(), targets[:length]
    lp = logits.log_softmax(-1)
    mean, deviation = lp.mean(-1, keepdim=True), lp.std(-1, keepdim=True)
    deviation = deviation.clamp(min=1e-12)
    actual = lp.gather(-1, targets[:, None])
    p = lp.exp()
    expected = (p * lp).sum(-1)
    spread = (p * lp.square()).sum(-1) - expected.square()
    missing = length - len(targets)

    def padded(x: Tensor, value: float = 0) -> Tensor:
        sides = (0, 0) * (x.dim() - 1) + (0, missing)
        return F.pad(x, sides, value=value)[None]

    return Signatures(
        padded(((lp.topk(min(top, lp.shape[1]), dim=-1).values - mean) / deviation).float()),
        padded(((actual - mean) / deviation)[:, 0].float()),
        padded((lp > actual).sum(-1), lp.shape[1] - 1),
        padded(torch.ones_like(targets, dtype=torch.bool)),
        padded(actual[:, 0].float()),
        padded(expected.float()),
        padded(spread.clamp(min=1e-12).sqrt().float(), 1),
        lp.shape[1],
    )


@torch.no_grad()
def signatures(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    *,
    separator: int | None = None,
    top: int = 1000,
    length: int = 100,
) -> Signatures:
    """Signatures of texts of ids under a causal language model, their first ``length`` predicted tokens.

    With ``separator`` it stands before each text, whose first token is then predicted, too. Raises ``UserError`` for
    a text with nothing to predict.
    """
    found = []
    start = [] if separator is None else [separator]
    for number, text in enumerate(texts):
        ids = torch.tensor([*start, *text][: length + 1], device=model.device)
        if len(ids) < 2:
            raise UserError(f"text {number + 1} has {len(ids)} tokens; a signature needs at least 2")
        logits = model(ids[None], use_cache=False).logits[0, :-1].float().cpu()
        found.append(signature(logits, ids[1:].cpu(), top=top, length=length))
    if not found:
        raise UserError("there is no text to look at; give one a line")
    joined = {
        f.name: torch.cat([getattr(one, f.name) for one in found])
        for f in dataclasses.fields(Signatures)
        if f.name != "vocab_size"
    }
    return Signatures(**joined, vocab_size=found[0].vocab_size)


class LOSNet(nn.Module):
    """Signatures to logits of the label. ``masked`` hides padding from attention, which the authors do not.

    With ``top`` = 0 it reads only the actual tokens (the authors' ATP+R transformer). Raises ``UserError`` for a
    width that is odd or that the heads do not divide.
    """

    def __init__(
        self,
        *,
        top: int,
        length: int,
        vocab_size: int,
        hidden_size: int = 128,
        num_layers: int = 1,
        num_heads: int = 8,
        dropout: float = 0.0,
        masked: bool = True,
    ) -> None:
        super().__init__()
        if hidden_size % 2 or hidden_size % num_heads:
            raise UserError(f"hidden_size={hidden_size} must be even and a multiple of the {num_heads} heads")
        right = hidden_size // 2 if top else hidden_size
        self.left = nn.Linear(top, hidden_size - right) if top else None
        self.ranked = nn.Parameter(torch.randn(right))
        self.plain = nn.Parameter(torch.randn(right))
        self.cls = nn.Parameter(torch.randn(hidden_size))
        self.positions = nn.Embedding(length + 1, hidden_size)
        layer = nn.TransformerEncoderLayer(hidden_size, num_heads, hidden_size, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(hidden_size, 1)
        self.vocab_size = vocab_size
        self.masked = masked

    def forward(self, x: Signatures) -> Float[Tensor, " texts"]:
        z = self.tokens(x)
        z = torch.cat((self.cls.expand(len(z), 1, -1), z), 1) + self.positions.weight
        hidden = F.pad(~x.real, (1, 0)) if self.masked else None
        return self.head(self.encoder(z, src_key_padding_mask=hidden)[:, 0])[:, 0]

    def tokens(self, x: Signatures) -> Float[Tensor, "texts tokens hidden"]:
        """z, before positions."""
        rank = 2 * (0.5 - x.rank / self.vocab_size)
        right = (x.actual * rank)[..., None] * self.ranked + x.actual[..., None] * self.plain
        return right if self.left is None else torch.cat((self.left(x.top), right), -1)


def fit(
    x: Signatures,
    labels: Bool[Tensor, " texts"],
    *,
    top: int | None = None,
    hidden_size: int = 128,
    num_layers: int = 1,
    dropout: float = 0.0,
    epochs: int = 60,
    patience: int = 20,
    batch_size: int = 64,
    lr: float = 3e-4,
    weight_decay: float = 1e-3,
    masked: bool = True,
    seed: int = 0,
) -> LOSNet:
    """A LOS-Net for labelled signatures: AdamW on the binary cross-entropy, warmed up over a tenth of the steps.

    A fifth of each label's texts is for validation: the weights of the epoch of best area under the curve there are
    kept, and training stops after ``patience`` epochs without a better one. ``top`` = 0 leaves the sorted
    probabilities out. Raises ``UserError`` for fewer than 5 texts of a label.
    """
    for label in (True, False):
        count = int((labels == label).sum())
        if count < 5:
            raise UserError(f"there are {count} texts with the label {label}; at least 5 of each are needed")
    generator = torch.Generator().manual_seed(seed)
    kinds = [
        kind[torch.randperm(len(kind), generator=generator)]
        for kind in ((labels == label).nonzero()[:, 0] for label in (True, False))
    ]
    validation = torch.cat([kind[: len(kind) // 5] for kind in kinds])
    training = torch.cat([kind[len(kind) // 5 :] for kind in kinds])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = LOSNet(
            top=x.top.shape[-1] if top is None else top, length=x.actual.shape[1], vocab_size=x.vocab_size,
            hidden_size=hidden_size, num_layers=num_layers, dropout=dropout, masked=masked,
        )  # fmt: skip
        optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=weight_decay)
        steps = epochs * math.ceil(len(training) / batch_size)
        warm = max(steps // 10, 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(steps - warm, 1))
        )
        best, kept, since = -1.0, copy.deepcopy(net.state_dict()), 0
        for _ in range(epochs):
            net.train()
            for batch in training[torch.randperm(len(training), generator=generator)].split(batch_size):
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(net(x[batch]), labels[batch].float()).backward()
                optimizer.step()
                schedule.step()
            reached = auroc(scores(net, x[validation]), labels[validation])
            since += 1
            if reached > best:
                best, kept, since = reached, copy.deepcopy(net.state_dict()), 0
            if since == patience:
                break
    net.load_state_dict(kept)
    return net.eval()


@torch.no_grad()
def scores(net: LOSNet, x: Signatures) -> Float[Tensor, " texts"]:
    """The network's logits, in evaluation mode."""
    return torch.cat([net.eval()(x[part]) for part in torch.arange(len(x)).split(256)])


def baselines(x: Signatures, share: float = 0.2) -> dict[str, Float[Tensor, " texts"]]:
    """``loss`` (mean ln p), ``min-k`` and ``min-k++`` of the ``share`` of least likely tokens; higher: more known.

    ⌈share · n⌉ of a text's n tokens count. Raises ``UserError`` for a share that is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"the share {share:g} of least likely tokens must be above 0 and at most 1, e.g. 0.2")
    normed = (x.log_probability - x.expected) / x.deviation
    return {
        "loss": _lowest(x.log_probability, x.real, 1.0),
        "min-k": _lowest(x.log_probability, x.real, share),
        "min-k++": _lowest(normed, x.real, share),
    }


def auroc(score: Float[Tensor, " texts"], labels: Bool[Tensor, " texts"]) -> float:
    """The share of pairs of a true and a false label in which the true one has the higher score; ties count half."""
    difference = score[labels][:, None] - score[~labels]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()


def _lowest(values: Tensor, real: Tensor, share: float) -> Tensor:
    counts = (share * real.sum(1).double() - 1e-9).ceil().clamp(min=1).long()
    ordered = values.masked_fill(~real, math.inf).sort(1).values
    chosen = torch.arange(values.shape[1]) < counts[:, None]
    return torch.where(chosen, ordered, 0.0).sum(1) / counts
