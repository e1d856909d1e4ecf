"""Steps that a recurrent network takes to a training loss, with and without layer normalization.

    a_t = W_hh h_{t−1} + W_xh x_t,    h_t = tanh(a_t + b)  or  h_t = tanh(LN(a_t))

reads the digits as sequences of a few pixels and names them from its last state. Gain and bias of LN are shared over
time, its statistics are those of each step. Ba, Kiros, Hinton, 2016, arXiv:1607.06450.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.claims.digits import batches, digits
from assay.claims.experiments import experiments
from assay.nn.norm.layer_norm import LayerNorm


class RecurrentClassifier(nn.Module):
    """Sequences to logits of 10 classes."""

    def __init__(self, in_features: int, hidden_size: int, *, normed: bool) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input = nn.Linear(in_features, hidden_size, bias=not normed)
        self.recurrent = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm = LayerNorm(hidden_size) if normed else nn.Identity()
        self.head = nn.Linear(hidden_size, 10)

    def forward(self, x: Float[Tensor, "batch time in_features"]) -> Float[Tensor, "batch 10"]:
        state = x.new_zeros(len(x), self.hidden_size)
        for summed in self.input(x).unbind(1):
            state = torch.tanh(self.norm(self.recurrent(state) + summed))
        return self.head(state)


@experiments.register("layer-norm-recurrent")
def layer_norm_recurrent(
    seed: int,
    *,
    target: float = 0.5,
    steps: int = 1000,
    batch_size: int = 16,
    length: int = 32,
    hidden_size: int = 64,
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2),
) -> dict[str, float]:
    """``plain`` and ``normed``: steps until a running mean of the training loss is below ``target`` nats.

    It is the least over the learning rates of Adam, the same for both, and ``steps`` where that was not enough.
    Images are sequences of ``length`` steps.
    """
    images, labels, _, _ = digits(seed)
    sequences = images.reshape(len(images), length, -1)

    def steps_to_target(lr: float, *, normed: bool) -> int:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = RecurrentClassifier(sequences.shape[-1], hidden_size, normed=normed)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        running = 2.303
        for step, index in enumerate(batches(len(labels), steps=steps, batch_size=batch_size, seed=seed), start=1):
            loss = F.cross_entropy(model(sequences[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running += 0.05 * (loss.item() - running)
            if running < target:
                return step
        return steps

    return {
        name: float(min(steps_to_target(lr, normed=normed) for lr in lrs))
        for name, normed in (("plain", False), ("normed", True))
    }
