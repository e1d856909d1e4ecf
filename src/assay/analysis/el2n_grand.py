"""EL2N and GraNd: which training examples matter, told early in training.

    EL2N(x, y)  = E ‖p(x) − y‖₂                  p: probabilities, y: the label, one-hot
    GraNd(x, y) = E ‖∇ −ln p(x)_y‖₂              over all parameters

with the mean over runs from independent starts, each at an early step, in evaluation mode, on plain inputs. High
scores are hard or mislabelled examples, low ones easy: pruning keeps the highest, and with noisy labels passes over
the very highest. Of a softmax over one linear map with a bias GraNd is EL2N · √(‖x‖² + 1).

Paul, Ganguli, Dziugaite, 2021, arXiv:2107.07075. Scores of windows of tokens are not theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from assay.analysis.negative_aware_norm import read_features
from assay.errors import UserError

IGNORED = -100


def el2n(logits: Float[Tensor, "*batch classes"], labels: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """‖softmax(logits) − one-hot(labels)‖₂, between 0 and √2, of one run.

    Raises ``UserError`` for a label that is no class.
    """
    classes = logits.shape[-1]
    if labels.shape != logits.shape[:-1]:
        raise UserError(f"labels of shape {list(labels.shape)} for logits of shape {list(logits.shape)}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(f"labels between {int(labels.min())} and {int(labels.max())}; {classes} classes are 0 and up")
    return (logits.softmax(-1) - F.one_hot(labels, classes)).norm(dim=-1)


def el2n_windows(
    logits: Float[Tensor, "windows time vocab"], targets: Int[Tensor, "windows time"]
) -> Float[Tensor, " windows"]:
    """The mean EL2N of each window's tokens; targets of -100 do not count.

    A token that is not expected scores near 1 or more, whatever it is, so that windows differ less than images.
    Raises ``UserError`` if a window has no target.
    """
    counted = targets != IGNORED
    if not counted.any(1).all():
        raise UserError("a window has no target; leave it out")
    scores = el2n(logits, targets.where(counted, torch.zeros_like(targets)))
    return (scores * counted).sum(1) / counted.sum(1)


def grand(
    model: nn.Module, inputs: Float[Tensor, "count ..."], labels: Int[Tensor, " count"], *, batch_size: int = 128
) -> Float[Tensor, " count"]:
    """The norm of each example's own gradient of the cross-entropy, over all trainable parameters, of one run.

    ``model`` maps a batch of inputs to logits, [batch, classes]. It is in evaluation mode meanwhile, and has to be
    made of operations that ``torch.func.vmap`` knows.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    fixed |= dict(model.named_buffers())

    def loss(given: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, {**fixed, **given}, (x[None],)), y[None])

    def norm(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([g.square().sum() for g in grad(loss)(parameters, x, y).values()]).sum().sqrt()

    was_training = model.training
    model.eval()
    try:
        pairs = zip(inputs.split(batch_size), labels.split(batch_size), strict=True)
        return torch.cat([vmap(norm)(x, y) for x, y in pairs])
    finally:
        model.train(was_training)


def last_layer_grand(
    logits: Float[Tensor, "count classes"], labels: Int[Tensor, " count"], features: Float[Tensor, "count hidden"]
) -> Float[Tensor, " count"]:
    """GraNd over the last linear map and its bias alone, without a backward pass: EL2N · √(‖features‖² + 1)."""
    return el2n(logits, labels) * (features.square().sum(-1) + 1).sqrt()


def mean_score(runs: Sequence[Float[Tensor, " count"]]) -> Float[Tensor, " count"]:
    """The mean over runs, of norms and not of gradients. Raises ``UserError`` if runs scored other examples."""
    counts = sorted({len(scores) for scores in runs})
    if len(counts) != 1:
        raise UserError(f"runs with {', '.join(map(str, counts)) or 'no'} examples; all must score the same ones")
    return torch.stack(list(runs)).mean(0)


def keep(scores: Float[Tensor, " count"], fraction: float, *, drop_highest: float = 0.0) -> Int[Tensor, " kept"]:
    """Indices, ascending, of the ``fraction`` of examples that score highest; of equal ones the first.

    With ``drop_highest`` that fraction of the examples, the very highest, is passed over first. Counts are rounded to
    the nearest. Raises ``UserError`` for fractions that cannot be.
    """
    if not (0 < fraction <= 1 and 0 <= drop_highest < 1 and fraction + drop_highest <= 1 + 1e-9):
        raise UserError(
            f"keep={fraction} and drop_highest={drop_highest}: both are shares of the examples, together at most 1"
        )
    first = round(drop_highest * len(scores))
    ranked = scores.argsort(descending=True, stable=True)
    return ranked[first : first + round(fraction * len(scores))].sort().values


def read_logits(path: Path) -> Float[Tensor, "count classes"]:
    """One run's logits, a row for each example, from a .npy, .csv or .safetensors file."""
    return read_features(path)


def read_labels(path: Path) -> Int[Tensor, " count"]:
    """One whole number a line. Raises ``UserError`` for anything else."""
    from assay.data.reading import read

    try:
        labels = [int(line) for line in read(path).decode("utf-8").split()]
    except ValueError:
        raise UserError(f"{str(path)!r}: labels are whole numbers from 0 on, one a line") from None
    return torch.tensor(labels, dtype=torch.int64)
