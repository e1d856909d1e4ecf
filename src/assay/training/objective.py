"""What a training step differentiates: a model and a loss, under the run's precision."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.models import Decoder


class Objective(nn.Module):
    """Token ids and targets to one number, or token ids alone to logits.

    bfloat16 is autocast; the loss is in float32. Both go through ``forward``, where distribution has its hooks. What
    else a loss may ask for, ``assay.losses`` says.
    """

    def __init__(self, model: Decoder, loss: nn.Module, precision: str) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.autocast = precision == "bfloat16"

    def forward(
        self, inputs: Int[Tensor, "batch time"], targets: Int[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, ""] | Float[Tensor, "batch time vocab"]:
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            logits = self.model(inputs)
            if targets is None:
                return logits
            read = getattr(self.loss, "read", None)
            known = [] if read is None else [read(inputs)]
        return self.loss(logits, targets, *known)

    def begin_step(self, step: int, progress: float) -> None:
        """Before the forward passes of step ``step`` (from 0), at ``progress`` in [0, 1) through the run."""
        begin = getattr(self.loss, "begin_step", None)
        if begin is not None:
            begin(self.model, step, progress)
