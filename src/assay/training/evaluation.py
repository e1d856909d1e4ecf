"""Validation: bits per byte over a fixed text, which no tokenizer can flatter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from assay.data.windows import TokenData, bits_per_byte
from assay.training.config import RunConfig

IGNORED = -100


def evaluate(
    module: nn.Module, data: TokenData, config: RunConfig, accelerator: Accelerator, *, share: float = 1.0
) -> dict[str, float]:
    """Bits per byte of the validation text of each domain: of one corpus, one number; of a mixture, one of each."""
    return {
        name: evaluate_text(module, domain, config, accelerator, share=share) for name, domain in data.domains.items()
    }


@torch.no_grad()
def evaluate_text(
    module: nn.Module, data: TokenData, config: RunConfig, accelerator: Accelerator, *, share: float = 1.0
) -> float:
    """Σ −log₂ p(token) / number of bytes over the validation text; NaN or ∞ if the model gives that.

    With ``share`` < 1 only that part of the batches is read, spread evenly over the text, and its mean per target
    is scaled to the whole. The processes of a distributed run share the rows of each batch.
    """
    batches = list(data.evaluation(config.data.sequence_length, config.data.batch_size))
    targets_in_text = sum(int((targets != IGNORED).sum()) for _, targets in batches)
    total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    module.eval()
    for inputs, targets in batches[:: round(1 / share)]:
        inputs, targets = _own_rows(inputs, targets, accelerator)
        logits = module(inputs.to(accelerator.device)).flatten(0, 1).float()
        flat = targets.to(accelerator.device).flatten()
        nats = F.cross_entropy(logits, flat, reduction="sum")
        total += torch.stack([nats.double(), (flat != IGNORED).sum().double()])
    module.train()
    nats_sum, counted = accelerator.reduce(total, reduction="sum").tolist()
    return bits_per_byte(nats_sum / counted * targets_in_text, data.eval_bytes)


def _own_rows(inputs: Tensor, targets: Tensor, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """This process's rows; each process gets as many, filled up with rows that do not count."""
    rank, world = accelerator.process_index, accelerator.num_processes
    missing = -len(inputs) % world
    if missing:
        inputs = torch.cat([inputs, inputs[:1].expand(missing, -1)])
        targets = torch.cat([targets, torch.full_like(targets[:1], IGNORED).expand(missing, -1)])
    return inputs[rank::world], targets[rank::world]
