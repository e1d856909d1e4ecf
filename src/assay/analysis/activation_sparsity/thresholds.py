"""Activation sparsity: the share of FFN neurons that can be left out per token while perplexity rises by p %.

    nᵢ = zᵢ W_out[:, i]                        what neuron i adds to the layer's output, z the input of W_out
    CETT(ε) = mean over tokens of ‖Σ_{‖nᵢ‖ ≤ ε} nᵢ‖ / ‖Σ nᵢ‖
    ε_l(c) = the largest ε with CETT(ε) ≤ c    in layer l of the dense network
    c* : perplexity with all ‖nᵢ‖ ≤ ε_l(c*) left out = (1 + p / 100) · perplexity
    activation ratio = mean over layers and tokens of the share of neurons kept;  sparsity = 1 − activation ratio

Luo, Song, Han, Chen, Xiao, Meng, Deng, Wei, Liu, Sun, 2024, arXiv:2411.02335.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.errors import UserError

_NAMES = ("down_proj", "down", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2", "linear2")
_CANDIDATES = 2**16


@dataclass(frozen=True)
class LayerSparsity:
    """One FFN: neurons that add less than ``threshold`` are left out, for a tail error of ``cett``."""

    name: str
    threshold: float
    cett: float
    activation_ratio: float


@dataclass(frozen=True)
class ActivationSparsity:
    """``cett`` is c, shared by the layers; ``loss`` (dense) and ``sparse_loss`` are in nats per token."""

    cett: float
    loss: float
    sparse_loss: float
    layers: tuple[LayerSparsity, ...]

    @property
    def perplexity_ratio(self) -> float:
        return math.exp(self.sparse_loss - self.loss)

    @property
    def activation_ratio(self) -> float:
        return math.fsum(layer.activation_ratio for layer in self.layers) / len(self.layers)

    @property
    def sparsity(self) -> float:
        return 1 - self.activation_ratio


def activation_sparsity(
    model: nn.Module,
    ids: Int[Tensor, "batch time"],
    percent: float = 1.0,
    *,
    outputs: Sequence[str] | None = None,
) -> ActivationSparsity:
    """The activation sparsity of a causal language model at which the perplexity of ``ids`` is ``percent`` higher.

    ``outputs`` names the modules W_out, one an FFN; by default they are found by the names that transformers gives
    them. If even c = 1 costs less than ``percent``, that is the result. Raises ``UserError`` if there is no FFN, it
    is a mixture of experts, or ``percent`` is not positive.
    """
    (found,) = activation_sparsities([SparseRun(model, ids, outputs=outputs)], percent)
    return found


@torch.no_grad()
def activation_sparsities(
    runs: Sequence[SparseRun], percent: float = 1.0, *, last: int = 5
) -> tuple[ActivationSparsity, ...]:
    """Of several checkpoints of one network at one c, at which the mean perplexity ratio of the ``last`` is reached.

    c is bisected until the ratio is within a hundredth of ``percent``, or c within 10⁻⁶. Raises ``UserError`` unless
    ``percent`` and ``last`` are positive.
    """
    if not (0 < percent < math.inf) or last < 1:
        raise UserError(f"percent={percent}, last={last}; both must be positive")
    target, low, high, middle = 1 + percent / 100, 0.0, 1.0, 1.0
    while True:
        found = {index: runs[index].at(middle) for index in range(max(0, len(runs) - last), len(runs))}
        rise = math.fsum(one.perplexity_ratio for one in found.values()) / len(found) - target
        if (middle == 1 and rise <= 0) or abs(rise) <= percent / 10_000 or high - low < 1e-6:
            break
        low, high = (middle, high) if rise < 0 else (low, middle)
        middle = (low + high) / 2
    return tuple(found.get(index) or run.at(middle) for index, run in enumerate(runs))


class SparseRun:
    """A network on one text, dense and with the small contributions left out. Keeps the inputs of all W_out."""

    def __init__(
        self, model: nn.Module, ids: Int[Tensor, "batch time"], *, outputs: Sequence[str] | None = None
    ) -> None:
        if ids.ndim != 2 or ids.shape[1] < 2:
            raise UserError(f"ids of shape {list(ids.shape)}; perplexity needs windows of at least two tokens")
        self.model, self.ids = model.eval(), ids
        names = ffn_outputs(model) if outputs is None else list(outputs)
        self.modules = {name: model.get_submodule(name) for name in names}
        kept: dict[str, list[Tensor]] = {name: [] for name in names}

        def keep(name: str, z: Tensor) -> Tensor:
            kept[name].append(z.flatten(0, -2).float())
            return z

        with torch.no_grad(), _inputs_through(self.modules, keep):
            self.loss = next_token_loss(model, ids)
        for name in names:
            if not kept[name]:
                raise UserError(f"{name!r} was not used on this text, so it is no FFN that every token passes")
        self.layers = {
            name: TailError(torch.cat(kept.pop(name)), _output_weight(module))
            for name, module in self.modules.items()
        }

    @torch.no_grad()
    def at(self, cett: float) -> ActivationSparsity:
        """With the thresholds at which each layer's tail error is at most ``cett``."""
        thresholds = {name: layer.threshold(cett) for name, layer in self.layers.items()}
        shares = dict.fromkeys(self.modules, 0.0)

        def mask(name: str, z: Tensor) -> Tensor:
            kept = z.abs() * self.layers[name].norms > thresholds[name]
            shares[name] += kept.sum().item() / self.layers[name].z.numel()
            return z.masked_fill(~kept, 0)

        with _inputs_through(self.modules, mask):
            sparse_loss = next_token_loss(self.model, self.ids)
        layers = tuple(
            LayerSparsity(name, epsilon, self.layers[name].at(epsilon), shares[name])
            for name, epsilon in thresholds.items()
        )
        return ActivationSparsity(cett, self.loss, sparse_loss, layers)


class TailError:
    """CETT of one FFN on some tokens. It rises with the threshold in practice, on which the search builds."""

    def __init__(self, z: Float[Tensor, "tokens neurons"], weight: Float[Tensor, "hidden neurons"]) -> None:
        self.z, self.weight = z, weight.float()
        self.norms = self.weight.norm(dim=0)
        self.contributions = z.abs() * self.norms
        self.whole = (z @ self.weight.mT).norm(dim=-1)
        some = self.contributions.flatten()[:: max(1, z.numel() // _CANDIDATES)]
        self.candidates = torch.linspace(0, some.quantile(0.99).item(), _CANDIDATES, dtype=torch.float64)
        self.known: dict[int, float] = {}

    def at(self, threshold: float) -> float:
        """The mean error of leaving out what adds ``threshold`` or less; tokens with no output at all count 0."""
        left_out = self.z.masked_fill(self.contributions > threshold, 0) @ self.weight.mT
        return (left_out.norm(dim=-1) / self.whole).nan_to_num().mean().item()

    def threshold(self, cett: float) -> float:
        """The largest of 65,536 candidates from 0 to the 99th percentile with an error of at most ``cett``."""
        low = max((place for place, error in self.known.items() if error <= cett), default=0)
        high = min((place for place, error in self.known.items() if error > cett), default=_CANDIDATES)
        while high - low > 1:
            middle = (low + high) // 2
            self.known[middle] = self.at(self.candidates[middle].item())
            low, high = (middle, high) if self.known[middle] <= cett else (low, middle)
        return self.candidates[low].item()


def ffn_outputs(model: nn.Module) -> list[str]:
    """The names of the last linear maps of the model's FFNs. Raises ``UserError`` if there are none, or experts."""
    found = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _NAMES and "att" not in name.lower() and _is_linear(module)
    ]
    if any("expert" in name for name, _ in model.named_modules()):
        raise UserError("the FFNs are mixtures of experts; activation sparsity is defined for dense ones")
    if not found:
        raise UserError(f"no FFN found: no linear map is called {', '.join(_NAMES)}; name them as outputs")
    return found


def next_token_loss(model: nn.Module, ids: Int[Tensor, "batch time"]) -> float:
    """Mean cross-entropy in nats per predicted token, a window at a time. The model gives logits, or has them."""
    total = 0.0
    for window in ids:
        output: Any = model(window[None])
        logits = output if isinstance(output, Tensor) else output.logits
        total += F.cross_entropy(logits[0, :-1].float(), window[1:], reduction="sum").item()
    return total / (ids.shape[0] * (ids.shape[1] - 1))


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _output_weight(module: nn.Module) -> Float[Tensor, "hidden neurons"]:
    """transformers' ``Conv1D`` keeps the transpose."""
    weight = module.get_parameter("weight").detach()
    return weight.mT if type(module).__name__ == "Conv1D" else weight


@contextmanager
def _inputs_through(modules: dict[str, nn.Module], function: Any) -> Iterator[None]:
    """While it lasts, each module reads ``function(name, input)`` in place of its input."""
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: (function(name, inputs[0]), *inputs[1:]))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
