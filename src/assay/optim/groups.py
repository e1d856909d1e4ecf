"""Parameters in groups: which are decayed, and which are matrices of hidden layers."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

Role = Literal["matrix", "embedding", "vector"]
HEADS = {"head", "lm_head", "embed_out"}
"""Names of a language model's head here and in transformers."""


class ParameterGroup(TypedDict):
    params: list[nn.Parameter]
    role: Role
    """``matrix``: a weight between hidden layers; ``embedding``: indexed by tokens or positions, heads included."""
    decay: bool
    """Whether weight decay applies."""
    lr_scale: NotRequired[float]
    decay_scale: NotRequired[float]
    """What the optimizer's rate and decay are multiplied by for this group."""


def parameter_groups(model: nn.Module) -> list[ParameterGroup]:
    """The trainable parameters by role and decay, each once, in the model's order.

    Matrices and embeddings are decayed and vectors are not, unless the module that owns a parameter lists its
    name in ``weight_decay_parameters``.
    """
    groups: dict[tuple[Role, bool], ParameterGroup] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            role = _role(path, module, parameter)
            decay = role != "vector" or name in getattr(module, "weight_decay_parameters", ())
            group = groups.setdefault((role, decay), {"params": [], "role": role, "decay": decay})
            group["params"].append(parameter)
    return list(groups.values())


def head_parameters(model: nn.Module) -> set[int]:
    """The ids of what a language model's head has of its own."""
    named = ((path, p) for path, module in model.named_modules() for p in module.parameters(recurse=False))
    return {id(p) for path, p in named if _in_head(path)}


def with_roles(params: ParamsT) -> list[dict[str, Any]]:
    """Whatever torch's optimizers take, as groups that have a ``role`` and a ``decay``.

    Parameters that come without a role are matrices from two dimensions on, and else vectors; vectors are not
    decayed. Other keys of a group, as a rate of its own, stay with all its parameters.
    """
    items: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    found = items if items and isinstance(items[0], dict) else [{"params": items}]
    return [part for group in found for part in _by_role(group)]


def _by_role(group: dict[str, Any]) -> list[dict[str, Any]]:
    members = group["params"]
    members = [members] if isinstance(members, Tensor) else list(members)
    members = [member[1] if isinstance(member, tuple) else member for member in members]
    if "role" in group:
        return [{"decay": group["role"] != "vector", **group, "params": members}]
    roles: dict[Role, list[Tensor]] = {}
    for parameter in members:
        roles.setdefault("matrix" if parameter.ndim >= 2 else "vector", []).append(parameter)
    return [{"decay": role != "vector", **group, "params": own, "role": role} for role, own in roles.items()]


def _role(path: str, module: nn.Module, parameter: nn.Parameter) -> Role:
    if parameter.ndim < 2:
        return "vector"
    return "embedding" if isinstance(module, nn.Embedding) or _in_head(path) else "matrix"


def _in_head(path: str) -> bool:
    return not HEADS.isdisjoint(path.split("."))
