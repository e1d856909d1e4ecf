"""The devices and processes that a run has: accelerate, as the configuration wants it."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, FullyShardedDataParallelPlugin

from assay.errors import UserError
from assay.training.config import RunConfig


def accelerator_for(config: RunConfig, path: Path) -> Accelerator:
    """Devices, process group, sharding and trackers; precision is the objective's own business.

    Raises ``UserError`` for what cannot be sharded, trackers that are not there, and batches that do not divide.
    """
    AcceleratorState._reset_state(reset_partial_state=False)
    plugin = None
    if config.training.sharding == "fsdp":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Layer"],
            state_dict_type="FULL_STATE_DICT",
        )
    trackers = list(config.training.trackers)
    gpus = torch.accelerator.is_available()
    if plugin is not None and config.training.diagnostics:
        raise UserError("training.diagnostics needs whole weights on one device: training.sharding='none'")
    if plugin is not None and config.selection.name != "all":
        raise UserError("training.sharding='fsdp' needs all parameters trained in every step: selection='all'")
    if plugin is not None and not gpus:
        raise UserError("training.sharding='fsdp' needs GPUs; on CPUs processes keep whole copies: 'none'")
    try:
        accelerator = Accelerator(
            cpu=not gpus,
            log_with=trackers or None,
            project_dir=path if trackers else None,
            fsdp_plugin=plugin,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=config.selection.name != "all")],
        )
    except ValueError as error:
        raise UserError(f"training.trackers={trackers}: {' '.join(str(error).split())}") from None
    if config.data.batch_size % accelerator.num_processes:
        raise UserError(
            f"data.batch_size={config.data.batch_size} cannot be shared out among "
            f"{accelerator.num_processes} processes"
        )
    return accelerator
