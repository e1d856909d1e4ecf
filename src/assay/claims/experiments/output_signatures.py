"""Which texts a small model was trained on, told from its output alone.

Passages of Python's manual are split by a seed: a model in the form of Llama learns half of them for some epochs, and
the other half is of the same kind. LOS-Net and its baselines learn from some passages and are tested on others.

Bar-Shalom, Frasca, Lim, Gelberg, Ziser, El-Yaniv, Chechik, Maron, 2025, arXiv:2503.14043.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.analysis.output_signatures import Signatures, auroc, baselines, fit, scores, signatures
from assay.claims.experiments import experiments
from assay.claims.experiments.function_tokens import byte_pairs, small_model, topics, train


@experiments.register("output-signatures")
def output_signatures(
    seed: int,
    *,
    passages: int = 1000,
    length: int = 64,
    training_epochs: int = 6,
    vocab_size: int = 1024,
    hidden_size: int = 128,
    top: int = 200,
    epochs: int = 30,
) -> dict[str, float]:
    """Areas under the curve for members against others, on a half of the passages that no detector learned from.

    ``los`` is LOS-Net, ``actual`` one without the sorted probabilities, ``loss``, ``min-k`` and ``min-k++`` are the
    scores, ``linear`` is a logistic regression on (mean and least a, mean r).

    Two controls are 0.5 in the mean over seeds if all is sound: ``permuted``, LOS-Net trained on permuted labels, and
    ``words``, a logistic regression on the passages' token counts, which sees the text but not the model.
    """
    stream = np.concatenate(byte_pairs(topics(seed), vocab_size))
    rng = np.random.default_rng([seed, 2])
    every = stream[: len(stream) // length * length].reshape(-1, length)
    rows = torch.from_numpy(rng.permutation(every)[:passages])
    labels = torch.arange(len(rows)) < len(rows) // 2
    model = small_model(seed, vocab_size, hidden_size=hidden_size, length=length, depth=3)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.95))
    members = np.arange(len(rows) // 2)
    order = rng.permuted(np.tile(members, (training_epochs, 1)), axis=1).ravel()
    train(model, rows[order[: len(order) // 16 * 16].reshape(-1, 16)], optimizer)
    x = signatures(model, rows.tolist(), top=top, length=length - 1)
    plain = torch.stack((x.actual.mean(1), x.actual.amin(1), x.rank.float().mean(1)), 1)
    words = torch.zeros(len(rows), vocab_size).scatter_add_(1, rows, torch.ones(rows.shape))
    training, test = torch.from_numpy(rng.permutation(len(rows))).tensor_split(2)
    shuffled = labels[training][torch.from_numpy(rng.permutation(len(training)))]
    judged = {
        "los": _net(x[training], labels[training], x[test], seed, epochs, None),
        "actual": _net(x[training], labels[training], x[test], seed, epochs, 0),
        "permuted": _net(x[training], shuffled, x[test], seed, epochs, None),
        "linear": _logistic(plain[training], labels[training], plain[test]),
        "words": _logistic(words[training], labels[training], words[test]),
    } | baselines(x[test])
    return {name: auroc(score, labels[test]) for name, score in judged.items()}


def _net(
    known: Signatures, labels: Bool[Tensor, " known"], x: Signatures, seed: int, epochs: int, top: int | None
) -> Float[Tensor, " unknown"]:
    return scores(fit(known, labels, top=top, hidden_size=64, epochs=epochs, lr=1e-3, seed=seed), x)


def _logistic(
    known: Float[Tensor, "known features"], labels: Bool[Tensor, " known"], unknown: Float[Tensor, "unknown features"]
) -> Float[Tensor, " unknown"]:
    """Logits of a logistic regression with a ridge, on standardised features."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = known.mean(0), known.std(0).clamp(min=1e-6)
    regression = LogisticRegression(max_iter=1000).fit(((known - mean) / scale).numpy(), labels.numpy())
    return torch.from_numpy(regression.decision_function(((unknown - mean) / scale).numpy()))
