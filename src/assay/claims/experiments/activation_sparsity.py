"""Activation sparsity of ReLU and SiLU: two small byte-level Llamas with gated FFNs, differing in the activation.

Both are trained on the same windows of the standard library's source, with width to depth and FFN ratio as in the
paper's smallest network. Their activation ratios at 1 % more perplexity are taken early and late in training.

Luo et al., 2024, arXiv:2411.02335.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from assay.analysis.activation_sparsity import SparseRun, activation_sparsities
from assay.claims.experiments import experiments


@experiments.register("activation-sparsity")
def activation_sparsity_of_activations(
    seed: int,
    *,
    early: int = 150,
    steps: int = 500,
    hidden_size: int = 96,
    depth: int = 2,
    length: int = 128,
    batch_size: int = 8,
    lr: float = 3e-3,
    percent: float = 1.0,
) -> dict[str, float]:
    """``ACT.early``, ``ACT.late``: the activation ratio of ``relu`` and ``silu`` after ``early`` and all steps;
    ``ACT.trend``: late less early; ``ACT.loss``: the validation loss in nats per byte at the end.

    The rate is constant after a warm-up of 50 steps. Early and late share one CETT, set on the late network.
    """
    source = library(seed, (steps * batch_size + 16) * length)
    windows = source.view(-1, length)
    windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))]
    validation, training = windows[:16], windows[16:].view(steps, batch_size, length)
    found: dict[str, float] = {}
    for activation in ("relu", "silu"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=256,
                    hidden_size=hidden_size,
                    intermediate_size=hidden_size * 5 // 2,
                    num_hidden_layers=depth,
                    num_attention_heads=hidden_size // 32,
                    hidden_act=activation,
                    max_position_embeddings=length,
                )
            )
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
        runs = []
        for step, batch in enumerate(training, 1):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1, step / 50)
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step in (early, steps):
                runs.append(SparseRun(_copy(model), validation))
                model.train()
        before, after = activation_sparsities(runs, percent, last=1)
        found |= {
            f"{activation}.early": before.activation_ratio,
            f"{activation}.late": after.activation_ratio,
            f"{activation}.trend": after.activation_ratio - before.activation_ratio,
            f"{activation}.loss": after.loss,
        }
    return found


def library(seed: int, count: int) -> Int[Tensor, " count"]:
    """So many bytes of the standard library's modules, one after the other in an order of the seed's."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    parts: list[np.ndarray] = []
    rng = np.random.default_rng(seed)
    while sum(map(len, parts)) < count:
        parts += [np.frombuffer(files[index].read_bytes(), np.uint8) for index in rng.permutation(len(files))]
    return torch.from_numpy(np.concatenate(parts)[:count].astype(np.int64))


def _copy(model: LlamaForCausalLM) -> LlamaForCausalLM:
    twin = LlamaForCausalLM(model.config)
    twin.load_state_dict(model.state_dict())
    return twin
