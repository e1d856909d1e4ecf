"""GaLore, Fira, SinkGD and gradient transforms on parameters that two processes hold in shards, as FSDP does."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from assay.optim import gradients, optimizers

SHAPES = [(8, 6), (6, 11), (5,)]
LOW_RANK = {"rank": 2, "update_proj_gap": 2}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "galore": LOW_RANK,
    "fira": LOW_RANK,
    "sinkgd": {},
    "multi-normalization": {"passes": 2},
}


def draw(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def main() -> None:
    """One of two processes. Raises ``AssertionError`` if shards go another way than whole tensors."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))

    def shard(tensor: torch.Tensor) -> DTensor:
        return distribute_tensor(tensor, mesh, [Shard(0)])

    for name, options in OPTIMIZERS.items():
        whole = [nn.Parameter(draw(shape, seed)) for seed, shape in enumerate(SHAPES)]
        shards = [nn.Parameter(shard(parameter.detach().clone())) for parameter in whole]
        transforms = [
            [gradients.build(kind, seed=3, model=nn.ParameterList(own)) for kind in ("norm-growth-limiter", "noise")]
            for own in (whole, shards)
        ]
        rules = [optimizers.build(name, options, params=own, lr=0.1) for own in (whole, shards)]
        for step in range(4):
            for place, (one, part) in enumerate(zip(whole, shards, strict=True)):
                one.grad = (1 + step) * draw(tuple(one.shape), 100 * step + place)
                part.grad = shard(one.grad.clone())
            for own, rule, chain in zip((whole, shards), rules, transforms, strict=True):
                for transform in chain:
                    transform(own, step)
                rule.step()
        for one, part in zip(whole, shards, strict=True):
            torch.testing.assert_close(part.detach().full_tensor(), one.detach(), rtol=1e-4, atol=1e-5)
    distributed.barrier()
    os._exit(0)  # threads of gloo that end while Python does abort the process now and then


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo")
def test_shards_go_where_whole_tensors_do() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    main()
