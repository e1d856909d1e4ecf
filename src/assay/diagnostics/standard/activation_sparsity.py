"""How few neurons of each MLP make up its output.

    nᵢ = |zᵢ| · ‖W[:, i]‖                           what neuron i adds, z the input of the MLP's last map W
    CETT(ε) = mean over tokens of ‖Σ_{nᵢ ≤ ε} zᵢ W[:, i]‖ / ‖W z‖
    activation ratio = share of nᵢ > ε at the largest ε with CETT(ε) ≤ 0.2

A tail error of 0.2 as good as keeps the quality of the model: Zhang et al., 2024, arXiv:2402.03804; the ratio at a
given rise of perplexity is ``assay analyse activation-sparsity``, Luo et al., 2024, arXiv:2411.02335.
"""

from __future__ import annotations

from torch import Tensor, nn

from assay.diagnostics import Diagnostic, Result, diagnostics
from assay.diagnostics.events import Neurons
from assay.diagnostics.subject import Subject

ERROR = 0.2
TOKENS = 64
HALVINGS = 8


@diagnostics.register("activation-sparsity")
class ActivationSparsity(Diagnostic):
    """``activation_ratio`` (mean over layers), ``zeros`` (share of activations that are exactly 0)."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.ratios: dict[int, float] = {}
        self.zeros: dict[int, float] = {}

    def on_neurons(self, neurons: Neurons) -> None:
        down = self.subject.layers[neurons.layer].down
        if neurons.layer in self.ratios or down is None:
            return
        values = neurons.values.flatten(0, -2)[1 : TOKENS + 1].float()
        weight = down.get_parameter("weight").detach().float()
        columns = weight if isinstance(down, nn.Linear) else weight.T
        self.ratios[neurons.layer] = activation_ratio(values, columns)
        self.zeros[neurons.layer] = (values == 0).float().mean().item()

    def result(self) -> Result | None:
        if not self.ratios:
            return None
        ratios = [self.ratios[layer] for layer in sorted(self.ratios)]
        zeros = [self.zeros[layer] for layer in sorted(self.zeros)]
        scalars = {"activation_ratio": sum(ratios) / len(ratios), "zeros": sum(zeros) / len(zeros)}
        return Result(scalars, {"activation_ratio": ratios, "zeros": zeros})


def activation_ratio(values: Tensor, columns: Tensor, error: float = ERROR) -> float:
    """Of activations [tokens, neurons] and the map's weight [hidden, neurons], by halving between quantiles."""
    sizes = values.abs() * columns.norm(dim=0)
    output = (values @ columns.T).norm(dim=-1).clamp(min=1e-12)
    ordered = sizes.flatten().sort().values
    low, high = -1, len(ordered)
    while high - low > max(1, len(ordered) >> HALVINGS):
        middle = (low + high) // 2
        tail = (values * (sizes <= ordered[middle])) @ columns.T
        if (tail.norm(dim=-1) / output).mean() <= error:
            low = middle
        else:
            high = middle
    return (sizes > ordered[low]).float().mean().item() if low >= 0 else 1.0
