"""Checkpoints: model and optimizer as safetensors, the rest as JSON, replaced as a whole.

    model.safetensors        parameters and buffers by name
    optimizer.safetensors    "<parameter>|<state>" → tensor
    parts.safetensors        "<part>|<state>" → tensor, of the other components that have a state; if there is any
    state.json               step, tokens, seconds, parameter groups, size of the metrics file

Nothing is unpickled. A checkpoint is written beside the old one and takes its place by two renames, so that at
any moment one whole checkpoint is there: ``checkpoint`` or, between the renames, ``checkpoint.old``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

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


class Part(Protocol):
    """A component of a run that keeps something from step to step."""

    def state_dict(self) -> dict[str, torch.Tensor]: ...

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None: ...


FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class State(BaseModel):
    """Where a run stands, beside its tensors."""

    step: int
    seconds: float
    """Spent in training steps."""
    metrics_size: int
    """Bytes of ``metrics.jsonl`` at this step."""
    groups: list[dict[str, Any]] = []


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    *,
    parts: Mapping[str, Part] | None = None,
    write: bool = True,
) -> None:
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
    of_parts = {f"{part}|{name}": v for part, it in (parts or {}).items() for name, v in it.state_dict().items()}
    new = path.with_name(f"{path.name}.new")
    old = path.with_name(f"{path.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    with disk_errors(path):
        try:
            new.mkdir(parents=True)
            save_file(_contiguous(weights), new / "model.safetensors", metadata={"format": "pt"})
            save_file(_contiguous(tensors), new / "optimizer.safetensors")
            if of_parts:
                save_file(_contiguous(of_parts), new / "parts.safetensors")
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


def load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, parts: Mapping[str, Part] | None = None
) -> State | None:
    """Restore all in place; None if there is no checkpoint. Raises ``UserError`` if it cannot be read."""
    found = next((p for p in (path, path.with_name(f"{path.name}.old")) if p.exists()), None)
    if found is None:
        return None
    state, weights = _read(found)
    optimizer_state: dict[str, Any] = {
        "state": _by_owner(read_tensors(found / "optimizer.safetensors")),
        "param_groups": state.groups,
    }
    kept = _by_owner(read_tensors(found / "parts.safetensors")) if (found / "parts.safetensors").exists() else {}
    with _fitting(found):
        set_weights(model, weights)
        set_optimizer_state_dict(
            model, optimizer, optimizer_state, options=StateDictOptions(full_state_dict=True, strict=False)
        )
        _forget_others(optimizer, state.groups, optimizer_state["state"])
        for name, part in (parts or {}).items():
            part.load_state_dict(kept.get(name, {}))
    return state


def load_weights(path: Path, model: nn.Module) -> State:
    """Restore parameters and buffers alone. Raises ``UserError`` if they cannot be read or are another model's."""
    state, weights = _read(path)
    with _fitting(path):
        set_weights(model, weights)
    return state


def save_weights(path: Path, model: nn.Module, *, write: bool = True) -> None:
    """Parameters and buffers as one file. Raises ``AssayError`` if the disk is full."""
    weights: dict[str, Any] = get_model_state_dict(model, options=FULL)
    if not write:
        return
    new = path.with_name(f"{path.name}.new")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(_contiguous(weights), new, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(_errno_of(error), str(error)) from None
        new.replace(path)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name. Raises ``UserError`` if they cannot be read."""
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None


def set_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    """Raises ``ValueError`` if the names are not the model's, ``RuntimeError`` if a shape is not.

    What a loss keeps stays as it is where only one of the two has it: a run may go on with another loss.
    """
    for name in sorted(get_model_state_dict(model).keys() ^ weights.keys()):
        if not name.startswith("loss."):
            raise ValueError(f"one of the two has no {name!r}")
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, strict=False))


def _read(path: Path) -> tuple[State, dict[str, torch.Tensor]]:
    try:
        state = State.model_validate_json((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        raise _unreadable(path, error) from None
    return state, read_tensors(path / "model.safetensors")


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:120]
    return UserError(f"checkpoint {str(path)!r} cannot be read ({reason}); delete the run's directory to start again")


def _by_owner(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    owned: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        owner, _, name = key.rpartition("|")
        owned.setdefault(owner, {})[name] = tensor
    return owned


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {str(path)!r} does not fit this model: {reason}") from None


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
