"""The computation graph of one forward pass: its tensor operations with all their operands.

Autograd keeps what gradients need, which is less than what relevance needs (neither the operands of a sum nor the
logits of a softmax), so the pass is recorded below autograd, operation by operation. Whatever a network does between
its tensors, Python or C++, modules or functions, its own autograd functions or none, arrives here as the same few
hundred operations. Fused forms are taken apart where PyTorch can do so.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary


class Origin(IntEnum):
    """What a tensor was computed from, at most."""

    CONSTANT = 0
    PARAMETER = 1
    INPUT = 2


@dataclass(eq=False)
class Value:
    """What a tensor held when an operation read or wrote it."""

    data: Tensor
    origin: Origin = Origin.CONSTANT
    name: str = ""
    """Of an input or a parameter; empty for what an operation wrote."""


@dataclass(eq=False)
class Node:
    """An operation, with values in the place of tensors."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    outputs: list[Value]

    def operands(self) -> list[Value]:
        return [leaf for leaf in tree_leaves((self.arguments, self.options)) if isinstance(leaf, Value)]


@dataclass(eq=False)
class Recording:
    nodes: list[Node]
    """In the order in which they ran."""
    inputs: list[Value]
    output: Value


OVERWRITE = frozenset({"copy", "fill", "zero"})
"""Operations whose result has nothing of their first operand."""

_FRESH = frozenset(
    {"zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "sign", "argmax", "argmin"}
    | {"new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "bernoulli", "round", "floor", "ceil"}
)
"""Operations whose result is taken as a constant: it has the shape of an operand, or does not move with it."""


def record(
    network: Callable[..., Tensor], inputs: Sequence[Tensor], names: dict[nn.Parameter, str], constant: frozenset[str]
) -> Recording:
    """Run ``network(*inputs)`` and record it. What operations named in ``constant`` write counts as a constant."""
    recorder = _Recorder(names, constant)
    copies = [tensor.detach().clone() for tensor in inputs]
    values = [recorder.track(copy, f"input {i}") for i, copy in enumerate(copies)]
    with torch.no_grad(), _unfused(), recorder:
        output = network(*copies)
    return Recording(recorder.nodes, values, recorder.value(output))


@contextmanager
def _unfused() -> Iterator[None]:
    """Attention, recurrent layers and encoder layers as the operations that they consist of."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


@dataclass
class _Recorder(TorchDispatchMode):
    names: dict[nn.Parameter, str]
    constant: frozenset[str]
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._values: Any = WeakTensorKeyDictionary()
        self._in_storage: dict[int, list[Value]] = defaultdict(list)

    def track(self, tensor: Tensor, name: str) -> Value:
        self._set(tensor, Value(tensor.detach(), Origin.INPUT, name))
        return self.value(tensor)

    def value(self, tensor: Tensor) -> Value:
        found = self._values.get(tensor)
        if found is None:
            if isinstance(tensor, nn.Parameter):
                found = Value(tensor.detach(), Origin.PARAMETER, self.names.get(tensor, "a parameter"))
            else:
                found = Value(tensor.detach())
            self._set(tensor, found)
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = _written(func, args, kwargs)
        arguments, options = tree_map_only(Tensor, self.value, (args, kwargs))
        for tensor in written:
            self._preserve(tensor)
        out = func(*args, **kwargs)
        name, function = _functional(func)
        outputs = written or [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        node = Node(name, function, arguments, options, [])
        origin = self._origin(node)
        node.outputs = [
            Value(tensor.detach(), origin if _moves(tensor, node) else Origin.CONSTANT) for tensor in outputs
        ]
        if any(value.origin for value in node.outputs):
            self.nodes.append(node)
        for tensor, value in zip(outputs, node.outputs, strict=True):
            aliases = self._aliases(tensor) if written else []
            self._set(tensor, value)
            for alias in aliases:
                self._overlay(alias, tensor, value)
        return out

    def _origin(self, node: Node) -> Origin:
        if node.name in _FRESH or node.name in self.constant:
            return Origin.CONSTANT
        read = node.operands()[1:] if node.name in OVERWRITE else node.operands()
        return max((value.origin for value in read), default=Origin.CONSTANT)

    def _set(self, tensor: Tensor, value: Value) -> None:
        self._values[tensor] = value
        self._in_storage[_storage(tensor)].append(value)

    def _preserve(self, tensor: Tensor) -> None:
        """Before ``tensor`` is written to, save what was read from its storage."""
        for value in self._in_storage.pop(_storage(tensor), []):
            value.data = value.data.clone()

    def _aliases(self, tensor: Tensor) -> list[Tensor]:
        place = _storage(tensor)
        return [other for other in self._values if other is not tensor and _storage(other) == place]

    def _overlay(self, alias: Tensor, written: Tensor, value: Value) -> None:
        """``alias`` sees what was written to another view of its storage."""
        before: Value = self._values[alias]
        size = alias.untyped_storage().nbytes() // alias.element_size()
        places = torch.full((size,), -1, device=alias.device)
        order = torch.arange(written.numel(), device=alias.device).view(written.shape)
        places.as_strided(written.shape, written.stride(), written.storage_offset()).copy_(order)
        source = places.as_strided(alias.shape, alias.stride(), alias.storage_offset()).clone()
        after = before
        if (source >= 0).any():
            after = Value(alias.detach(), max(before.origin, value.origin))
            self.nodes.append(Node("overlay", torch.where, (before, value), {"source": source}, [after]))
        self._set(alias, after)


def _moves(tensor: Tensor, node: Node) -> bool:
    """Whether ``tensor`` moves with the operands: numbers do, conditions and whole numbers made of others do not."""
    whole = not tensor.is_floating_point()
    return tensor.dtype is not torch.bool and not (
        whole and any(value.origin and value.data.is_floating_point() for value in node.operands())
    )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    if not func._schema.is_mutable or torch.Tag.inplace_view in func.tags:
        return []
    found: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    return found


def _functional(func: Any) -> tuple[str, Any]:
    """The name of an operation without the underscore of its in-place form, and the form that writes nothing."""
    packet: str = func.overloadpacket.__name__
    if not func._schema.is_mutable or not packet.endswith("_"):
        return packet, func
    return packet[:-1], getattr(torch.ops.aten, packet[:-1], func)
