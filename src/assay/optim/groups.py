"""Parameters in groups: which are decayed, and which are matrices of hidden layers."""

from __future__ import annotations

from typing import Literal, TypedDict

from torch import nn

Role = Literal["matrix", "embedding", "vector"]
HEADS = {"head", "lm_head", "embed_out"}
"""Names of a language model's head here and in transformers."""


class ParameterGroup(TypedDict):
    params: list[nn.Parameter]
    role: Role
    """``matrix``: a weight between hidden layers; ``embedding``: indexed by tokens or positions, heads included."""
    decay: bool
    """Whether weight decay applies."""


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


def _role(path: str, module: nn.Module, parameter: nn.Parameter) -> Role:
    if parameter.ndim < 2:
        return "vector"
    if isinstance(module, nn.Embedding) or not HEADS.isdisjoint(path.split(".")):
        return "embedding"
    return "matrix"
