"""LISA beside LMFlow's callback: python benchmarks/peers/lisa.py CLONE

CLONE is a clone of github.com/OptimalScale/LMFlow. Two Llamas of equal weights are trained on equal batches by AdamW,
one under the callback, one under ours, which keeps all states as the callback does. The callback draws from numpy's
global generator; it is given our draws, and compared are what each step trains, and the weights after each step. Then
it draws by itself, and compared are the shares of windows in which each block is trained.
"""

from __future__ import annotations

import contextlib
import copy
import io
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from clones import Differences, Peer
from transformers import LlamaConfig, LlamaForCausalLM

from assay.optim.selection.lisa import Lisa

BLOCKS, LAYERS, EVERY, STEPS, WINDOWS = 8, 2, 3, 24, 4000


def main() -> None:
    peer = Peer(__doc__, "github.com/OptimalScale/LMFlow", "src/lmflow/pipeline/utils/lisa_trainer.py")
    found = Differences()
    ours = llama()
    theirs = copy.deepcopy(ours)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (ours, theirs)]
    selection = Lisa(ours, optimizers[0], seed=0, layers=LAYERS, every=EVERY, reset_state=False)
    callback = peer.module.DynamicLayerActivationCallback(LAYERS, EVERY, theirs)
    for step in range(STEPS):
        selection(step)
        begin(callback, step, draws=selection.active(step))
        found.add("parameters trained", *[trained(model) for model in (ours, theirs)])
        ids = torch.randint(31, (4, 12), generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found.add("weights", *[torch.nn.utils.parameters_to_vector(m.parameters()) for m in (ours, theirs)])
    shares = torch.zeros(2, BLOCKS)
    np.random.seed(0)  # noqa: NPY002  (the generator that the callback draws from)
    for window in range(WINDOWS):
        shares[0, selection.active(window * EVERY)] += 1 / WINDOWS
        begin(callback, window * EVERY)
        shares[1, callback.active_layers_indices] += 1 / WINDOWS
    found.add("shares of windows, each by its own draws", shares[0], shares[1])
    setting = {"blocks": BLOCKS, "layers": LAYERS, "every": EVERY, "steps": STEPS, "windows": WINDOWS}
    found.write(peer, __file__, **setting, dtype="float64")


def begin(callback: Any, step: int, draws: list[int] | None = None) -> None:
    given = patch("numpy.random.choice", return_value=np.array(draws)) if draws else contextlib.nullcontext()
    with given, contextlib.redirect_stdout(io.StringIO()):
        callback.on_step_begin(None, SimpleNamespace(global_step=step), None)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": BLOCKS}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).double()


def trained(model: LlamaForCausalLM) -> torch.Tensor:
    return torch.tensor([float(parameter.requires_grad) for parameter in model.parameters()])


if __name__ == "__main__":
    main()
