"""Checkpoints: model and optimizer as safetensors, the rest as JSON, replaced as a whole.

    model.safetensors        parameters and buffers by name
    optimizer.safetensors    "<parameter>|<state>" → tensor
    state.json               step, tokens, seconds, parameter groups, size of the metrics file

Nothing is unpickled. A checkpoint is written beside the old one and takes its place by two renames, so that at
any moment one whole checkpoint is there: ``checkpoint`` or, between the renames, ``checkpoint.old``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from assay.errors import UserError
from assay.files import disk_errors, write_json

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class State(BaseModel):
    """Where a run stands, beside its tensors."""

    step: int
    seconds: float
    """Spent in training steps."""
    metrics_size: int
    """Bytes of ``metrics.jsonl`` at this step."""
    groups: list[dict[str, Any]] = []


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, *, write: bool = True) -> None:
    """Every process of a distributed run takes part; the one with ``write`` writes.

    Raises ``AssayError`` if the disk is full, with the old checkpoint intact.
    """
    weights: dict[str, Any] = get_model_state_dict(model, options=FULL)
    optimizer_state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=FULL)
    if not write:
        return
    tensors = {
        f"{parameter}|{name}": torch.as_tensor(value)
        for parameter, values in optimizer_state["state"].items()
        for name, value in values.items()
    }
    groups = [dict(group) for group in optimizer_state["param_groups"]]
    new = path.with_name(f"{path.name}.new")
    old = path.with_name(f"{path.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    with disk_errors(path):
        try:
            new.mkdir(parents=True)
            save_file(_contiguous(weights), new / "model.safetensors", metadata={"format": "pt"})
            save_file(_contiguous(tensors), new / "optimizer.safetensors")
            write_json(new / "state.json", state.model_copy(update={"groups": groups}).model_dump(mode="json"))
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
            new.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        except SafetensorError as error:
            raise OSError(_errno_of(error), str(error)) from None
        finally:
            shutil.rmtree(new, ignore_errors=True)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State | None:
    """Restore both in place; None if there is no checkpoint. Raises ``UserError`` if it cannot be read."""
    found = next((p for p in (path, path.with_name(f"{path.name}.old")) if p.exists()), None)
    if found is None:
        return None
    try:
        state = State.model_validate_json((found / "state.json").read_text(encoding="utf-8"))
        weights: dict[str, Any] = dict(load_file(found / "model.safetensors"))
        tensors = load_file(found / "optimizer.safetensors")
    except (OSError, SafetensorError, ValidationError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"checkpoint {str(found)!r} cannot be read ({reason}); delete the run's directory to start again"
        ) from None
    values: dict[str, Any] = {}
    for key, tensor in tensors.items():
        parameter, _, name = key.rpartition("|")
        values.setdefault(parameter, {})[name] = tensor
    optimizer_state: dict[str, Any] = {"state": values, "param_groups": state.groups}
    try:
        for name in sorted(get_model_state_dict(model).keys() ^ weights.keys()):
            raise ValueError(f"one of the two has no {name!r}")
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
        set_optimizer_state_dict(
            model, optimizer, optimizer_state, options=StateDictOptions(full_state_dict=True, strict=False)
        )
        _forget_others(optimizer, state.groups, values)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {str(found)!r} does not fit this model: {reason}") from None
    return state


def _forget_others(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], stored: Mapping[str, Any]) -> None:
    """Drop what torch made up for parameters that had no gradient yet, and so no state, when it was stored."""
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        for parameter, name in zip(group["params"], saved["params"], strict=True):
            if name not in stored:
                optimizer.state.pop(parameter, None)


def _contiguous(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _errno_of(error: Exception) -> int:
    """The operating system's number in a message such as ``... No space left on device (os error 28)``."""
    _, _, tail = str(error).rpartition("os error ")
    digits = "".join(character for character in tail if character.isdigit())
    return int(digits) if digits else 5
