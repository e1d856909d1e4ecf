"""SAF: cross-entropy, and how far the outputs moved away from those of some epochs ago.

    p = softmax(z_{e−d} / τ),  q = softmax(z_e / τ)
    L = cross-entropy + weight · τ² · mean over examples of KL(p ‖ q)    in epochs e > start

z_{e−d} are the logits that the same example had d = ``gap`` epochs earlier, in training mode and as it was augmented
then. They are kept, d + 1 epochs of them, so that a step costs what it costs without the penalty.

Du, Zhou, Feng, Tan, Zhou, 2022, arXiv:2205.14083.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.errors import UserError
from assay.losses.mesa import trajectory_penalty

Logits = Float[Tensor, "batch classes"]
Indices = Int[Tensor, " batch"]
NEVER = torch.iinfo(torch.int32).min


class SAF(nn.Module):
    """A loss for any loop that knows the numbers of its examples and of its epochs, both from 0::

        loss = saf(model(x), labels, index, epoch)

    What is kept are buffers, saved with the module: (gap + 1) · num_examples rows in ``dtype``, and the epoch that
    each is of, so that an example which an epoch left out, or which another process has seen, has no penalty. With
    ``top_k`` a row is the largest logits with their classes and one value for all others, which keeps the probability
    of each of the former at τ. ImageNet takes 10 GB at gap 3 in float16, and 0.24 GB with ``top_k=10``.

    Mixed examples (mixup, cutmix) have no logits to compare with: pass ``index`` −1 for them, or use MESA.

    Raises ``UserError`` for a setting that is out of range.
    """

    def __init__(
        self,
        num_examples: int,
        num_classes: int,
        *,
        weight: float = 0.3,
        temperature: float = 5.0,
        start: int = 5,
        gap: int = 3,
        label_smoothing: float = 0.0,
        dtype: torch.dtype = torch.float16,
        top_k: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_examples", num_examples, 1),
            ("num_classes", num_classes, 2),
            ("gap", gap, 1),
        ):
            if value < least:
                raise UserError(f"{name}={value}; it must be at least {least}")
        if weight < 0 or not temperature > 0:
            raise UserError(f"weight={weight}, temperature={temperature}; both must be positive, the weight may be 0")
        if top_k is not None and not 1 <= top_k < num_classes - 1:
            raise UserError(f"top_k={top_k}; it must be 1 to {num_classes - 2}, or None to keep all {num_classes}")
        self.weight, self.temperature, self.label_smoothing = weight, temperature, label_smoothing
        self.start, self.gap, self.num_classes, self.top_k = start, gap, num_classes, top_k
        kept = num_classes if top_k is None else top_k + 1
        self.values: Tensor
        self.classes: Tensor
        self.epochs: Tensor
        self.register_buffer("values", torch.zeros(gap + 1, num_examples, kept, dtype=dtype))
        self.register_buffer("epochs", torch.full((gap + 1, num_examples), NEVER, dtype=torch.int32))
        numbers = torch.int16 if num_classes <= 2**15 else torch.int32
        self.register_buffer("classes", torch.zeros(gap + 1, num_examples, top_k or 0, dtype=numbers))

    def forward(
        self, logits: Logits, targets: Int[Tensor, " batch"], index: Indices, epoch: int
    ) -> Float[Tensor, ""]:
        """In nats. In training mode the logits are kept for later epochs; in evaluation it is the cross-entropy."""
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
        if not self.training:
            return loss
        self.keep(logits, index, epoch)
        if epoch <= self.start or self.weight == 0:
            return loss
        earlier, known = self.earlier(index, epoch)
        penalty = trajectory_penalty(logits, earlier, self.temperature).where(known, 0)
        return loss + self.weight * penalty.mean()

    @torch.no_grad()
    def keep(self, logits: Logits, index: Indices, epoch: int) -> None:
        """Examples of number −1 are left out. Raises ``UserError`` for a number beyond ``num_examples``."""
        if len(index) and not (index.min() >= -1 and index.max() < self.epochs.shape[1]):
            raise UserError(f"example {index.max().item()} of {self.epochs.shape[1]}; numbers begin at 0")
        slot, rows = epoch % (self.gap + 1), (index >= 0).nonzero()[:, 0]
        place, values = index[rows].to(self.values.device), logits.detach()[rows].float()
        values = values - values.amax(-1, keepdim=True)
        if self.top_k is not None:
            top = values.topk(self.top_k + 1, dim=-1)
            chosen = top.indices[:, : self.top_k]
            rest = (values / self.temperature).scatter(-1, chosen, -torch.inf).logsumexp(-1, keepdim=True)
            shared = self.temperature * (rest - torch.tensor(self.num_classes - self.top_k).log())
            values = torch.cat([top.values[:, : self.top_k], shared], dim=-1)
            self.classes[slot, place] = chosen.to(self.classes)
        self.values[slot, place] = values.to(self.values)
        self.epochs[slot, place] = epoch

    @torch.no_grad()
    def earlier(self, index: Indices, epoch: int) -> tuple[Logits, Bool[Tensor, " batch"]]:
        """The logits of ``gap`` epochs before, up to a constant in each row, and for which examples there are any."""
        slot, place = (epoch - self.gap) % (self.gap + 1), index.clamp(min=0).to(self.values.device)
        values = self.values[slot, place].to(index.device).float()
        known = (index >= 0) & (self.epochs[slot, place] == epoch - self.gap).to(index.device)
        if self.top_k is not None:
            shared = values[:, -1:].expand(-1, self.num_classes)
            values = shared.scatter(-1, self.classes[slot, place].to(index), values[:, :-1])
        return values, known
