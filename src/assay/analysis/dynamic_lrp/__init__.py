"""DynamicLRP: layer-wise relevance propagation by one rule per tensor operation, for networks of any architecture.

    R_a = R · |a| / (|a| + |b|)         for a + b and a · b, and likewise for b
    R_x = x ⊙ (w (R / (x w)))           for a product with parameters, matrices and convolutions
    R_a = ½ a ⊙ ((R / (a b)) bᵀ)        for a product of two activations, and likewise for b
    R_x = R                             for functions of one element and for norms

Relevance starts as 1 at a chosen output and flows back through the recorded operations; what does not reach an input
stays with the parameters that were added or multiplied on elementwise, so that all of it adds up to 1.
Lee, Millan Arias, 2025, arXiv:2512.07010; the rule for the softmax is Achtibat et al.'s, 2024, arXiv:2402.05602.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.analysis.dynamic_lrp.recording import Origin, Value, record
from assay.analysis.dynamic_lrp.rules import RULES, STRUCTURE, Settings, backward
from assay.errors import UserError

Softmax = Literal["gate", "identity", "attnlrp"]
Start = Callable[[Float[Tensor, "*output"]], Float[Tensor, "*output"]]

_NOISE = 1e-9
_SOFTMAX = frozenset({"_softmax", "_safe_softmax"})


@dataclass(frozen=True)
class Relevance:
    """Where the relevance of an output went."""

    inputs: tuple[Float[Tensor, "..."], ...]
    """One per input, of its shape; for token ids, the sum over the features of each token's embedding."""
    output: Float[Tensor, "..."]
    """What the network gave."""
    started: float
    """The sum of the relevance at the output."""
    parameters: dict[str, float]
    """What stayed with parameters: biases, factors and learned positions.

    Under ``softmax``, its offsets; under ``constants``, what arrived at elements that were filled in or masked.
    """
    operations: dict[str, int]
    """Of the operations that relevance went through, how many have a rule, by name."""
    unknown: dict[str, int]
    """Those that have none: relevance went through their gradient, which does not conserve it."""

    @property
    def coverage(self) -> float:
        """The share of the operations that have a rule."""
        known, unknown = sum(self.operations.values()), sum(self.unknown.values())
        return known / (known + unknown) if known + unknown else 1.0

    @property
    def conservation_error(self) -> float:
        """|Σ inputs + Σ parameters − started| / |started|."""
        ended = sum(tensor.sum().item() for tensor in self.inputs) + sum(self.parameters.values())
        return abs(ended - self.started) / max(abs(self.started), 1e-12)


def largest_logit(output: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch classes"]:
    """1 at the largest logit of every position, 0 elsewhere."""
    return torch.zeros_like(output).scatter(-1, output.argmax(-1, keepdim=True), 1.0)


def relevance(
    network: nn.Module | Callable[..., Any],
    *inputs: Tensor,
    start: Start = largest_logit,
    softmax: Softmax = "attnlrp",
    linear_gamma: float = 0.0,
    convolution_gamma: float = 0.0,
) -> Relevance:
    """The relevance of ``inputs`` (features, or token ids) to what ``network(*inputs)`` gives.

    Put the network into evaluation mode first. Of outputs that are no tensor, their ``logits`` are taken, or their
    first element. ``start`` maps the output to the relevance of each of its elements. ``softmax``: ``"attnlrp"``
    expands it to first order around its logits, and the offset keeps a part; ``"identity"`` sends relevance on to the
    logits as it is; ``"gate"`` takes attention weights as constants, so that it flows through values alone. With
    ``linear_gamma`` and ``convolution_gamma`` above 0, contributions of the result's own sign count 1 + γ times.

    Relevance is computed in float64. Raises ``UserError`` if the output does not depend on the inputs.
    """

    names = _names(network)
    settings = Settings(linear_gamma, convolution_gamma, softmax == "attnlrp")
    return _relevance(network, inputs, names, start, softmax, settings)


def token_relevance(
    model: nn.Module,
    ids: Int[Tensor, " time"],
    *,
    token: int | None = None,
    softmax: Softmax = "attnlrp",
    gamma: float = 0.0,
) -> Relevance:
    """The relevance of each token of ``ids`` to the logit of what comes next: of ``token``, or of the likeliest.

    ``model`` maps ids of shape (batch, time) to logits. ``inputs[0]`` of the result has the shape of ``ids``.
    Raises ``UserError`` without tokens, for more than there is room for, or for a ``token`` that the model has not.
    """
    room = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not len(ids):
        raise UserError("relevance needs a text of at least one token")
    if room is not None and len(ids) > room:
        raise UserError(f"the text is {len(ids)} tokens, and the model has room for {room}")

    def last(logits: Tensor) -> Tensor:
        found = torch.zeros_like(logits)
        if token is not None and not 0 <= token < logits.shape[-1]:
            raise UserError(f"token {token}: the model has tokens 0 to {logits.shape[-1] - 1}")
        found[0, -1, logits[0, -1].argmax() if token is None else token] = 1.0
        return found

    settings = Settings(linear_gamma=gamma, taylor_softmax=softmax == "attnlrp")
    return _relevance(lambda ids: model(ids[None]), (ids,), _names(model), last, softmax, settings)


def _names(network: Any) -> dict[nn.Parameter, str]:
    return {p: name for name, p in network.named_parameters()} if isinstance(network, nn.Module) else {}


def _tensor(output: Any) -> Tensor:
    found = getattr(output, "logits", output)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise UserError(f"the network gives {type(output).__name__}: neither a tensor nor anything with logits")
    return found


@torch.no_grad()
def _relevance(
    network: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    names: dict[nn.Parameter, str],
    start: Start,
    softmax: Softmax,
    settings: Settings,
) -> Relevance:
    constant = _SOFTMAX if softmax == "gate" else frozenset[str]()
    recording = record(lambda *tensors: _tensor(network(*tensors)), inputs, names, constant)
    if recording.output.origin is not Origin.INPUT:
        raise UserError("the network's output does not depend on its inputs through recorded operations")
    begun = start(recording.output.data).double()
    waiting: dict[Value, Tensor] = {recording.output: begun}
    ended: defaultdict[Value, Tensor] = defaultdict(lambda: begun.new_zeros(()))
    known, unknown = Counter[str](), Counter[str]()
    constants = 0.0
    for node in reversed(recording.nodes):
        arrived = [waiting.pop(value, None) for value in node.outputs]
        if all(r is None for r in arrived):
            continue
        rule = RULES.get(node.name)
        (unknown if rule is None and node.name not in STRUCTURE else known)[node.name] += 1
        first = arrived[0]
        shares = list(backward(node, arrived) if rule is None or first is None else rule(node, first, settings))
        for value, share in shares:
            if value.name:
                ended[value] = ended[value] + share
            elif value.origin:
                waiting[value] = waiting[value] + share if value in waiting else share
        if node.name in STRUCTURE:
            constants += _sum(r for r in arrived if r is not None) - _sum(share for _, share in shares)
    at_inputs = tuple(
        ended.pop(value, begun.new_zeros(())).broadcast_to(value.data.shape) for value in recording.inputs
    )
    at_parameters: defaultdict[str, float] = defaultdict(float)
    for value, share in ended.items():
        at_parameters[value.name] += share.sum().item()
    if abs(constants) > _NOISE:
        at_parameters["constants"] = constants
    started = begun.sum().item()
    return Relevance(at_inputs, recording.output.data, started, dict(at_parameters), dict(known), dict(unknown))


def _sum(tensors: Iterable[Tensor]) -> float:
    return sum(tensor.sum().item() for tensor in tensors)
