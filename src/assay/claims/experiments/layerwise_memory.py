"""What training a decoder holds in memory when some of its blocks are trained at a time.

The bytes of all tensors that are alive are followed from operation to operation; the peak over two windows of a
selection is what a device needs at least. An allocator's fragments and the temporary buffers of kernels come on top.

Pan et al., 2024, arXiv:2403.17919 (LISA); Li et al., 2024, arXiv:2405.18380 (OwLore).
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from assay.claims.experiments import experiments
from assay.models import Decoder, ModelConfig
from assay.models.initialization import initialize
from assay.optim import optimizers, parameter_groups, selections


class PeakMemory(TorchDispatchMode):
    """Bytes of the storages that operations gave out and that are still alive: ``now``, and the most at once.

    ``known`` are tensors that were there before.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()
        self._follow(known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._follow([leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)])
        return result

    def _follow(self, tensors: list[Tensor]) -> None:
        for storage in (tensor.untyped_storage() for tensor in tensors):
            key = storage._cdata
            if key not in self.alive:
                self.alive.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._release, key, storage.nbytes())
        self.peak = max(self.peak, self.now)

    def _release(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


@experiments.register("layerwise-memory")
def layerwise_memory(
    seed: int,
    *,
    layers: int = 2,
    depth: int = 8,
    hidden_size: int = 128,
    rank: int = 32,
    sequence_length: int = 128,
    batch_size: int = 2,
    every: int = 2,
) -> dict[str, float]:
    """``ARM.peak``: the most bytes alive at once, and ``ARM.state``: the most bytes that the optimizer kept.

    The arms are ``full`` (AdamW on all parameters), ``lisa`` and ``owlore`` (with GaLore), the last two over two
    windows of ``every`` steps.
    """
    arms: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
        "full": ("adamw", {}, "all", {}),
        "lisa": ("adamw", {}, "lisa", {"layers": layers, "every": every}),
        "owlore": ("galore", {"rank": rank}, "owlore", {"layers": layers, "every": every}),
    }
    shape = {"depth": depth, "hidden_size": hidden_size, "vocab_size": 257, "max_length": sequence_length}
    ids = torch.randint(257, (batch_size, sequence_length + 1), generator=torch.Generator().manual_seed(seed))
    found: dict[str, float] = {}
    for arm, (optimizer_name, options, selection_name, selecting) in arms.items():
        model = Decoder(ModelConfig.parse(shape))
        initialize(model, seed, model.config.init_std)
        optimizer = optimizers.build(optimizer_name, options, params=parameter_groups(model), lr=1e-3)
        selection = selections.build(
            selection_name, selecting, model=model, optimizer=optimizer, seed=seed, calibration=lambda: ids[:, :-1]
        )
        state = 0
        with PeakMemory([*model.parameters(), *model.buffers()]) as memory:
            for step in range(2 * every):
                selection(step)
                train_step(model, optimizer, ids)
                state = max(state, state_bytes(optimizer))
        found |= {f"{arm}.peak": float(memory.peak), f"{arm}.state": float(state)}
    return found


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of all tensors that the optimizer keeps."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
