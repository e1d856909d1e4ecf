"""What a pass through a decoder computes and moves, operator by operator, and how long a machine takes for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from assay.errors import UserError
from assay.models import ModelConfig

_GATED = {"swiglu": 3, "gelu": 2, "relu2": 2}


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that its latency depends on.

    ``kv_size`` is the width of all key heads together, as wide as that of all value heads. ``intermediate_size`` is
    what is active for one token, shared out among ``active_experts`` of ``experts``; ``mlp_matrices`` is 3 for a
    gated MLP. A tied head shares its matrix with the embedding.
    """

    depth: int
    hidden_size: int
    query_size: int
    kv_size: int
    intermediate_size: int
    vocab_size: int
    mlp_matrices: int = 3
    experts: int = 1
    active_experts: int = 1
    tied: bool = False

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in dataclasses.asdict(self).items() if name != "tied"}
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"{name}={value} is below 1")
        if self.active_experts > self.experts:
            raise UserError(f"active_experts={self.active_experts} is above experts={self.experts}")

    @classmethod
    def of(cls, config: ModelConfig) -> Shape:
        """Raises ``UserError`` for another mixer than softmax attention, an MLP of unknown cost or no vocabulary."""
        mixers = {component.name for component in config.mixer.components}
        mlps = {component.name for component in config.mlp.components}
        if mixers != {"softmax"} or len(mlps) > 1 or not mlps <= _GATED.keys():
            known = ", ".join(_GATED)
            raise UserError(f"latency is known for mixer 'softmax' and one MLP of {known}, not {mixers | mlps}")
        if config.vocab_size is None:
            raise UserError("model.vocab_size is not set, and the head's latency depends on it")
        return cls(
            depth=config.depth,
            hidden_size=config.hidden_size,
            query_size=config.num_heads * config.head_dim,
            kv_size=config.num_kv_heads * config.head_dim,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            mlp_matrices=_GATED[mlps.pop()],
            tied=config.head.name == "tied",
        )

    @property
    def layer_weights(self) -> float:
        """Matrix entries of one layer, those of all experts."""
        attention = 2 * self.hidden_size * (self.query_size + self.kv_size)
        router = self.hidden_size * self.experts if self.experts > 1 else 0
        mlp = self.mlp_matrices * self.hidden_size * self.intermediate_size * self.experts / self.active_experts
        return attention + router + mlp

    @property
    def weights(self) -> float:
        """Matrix entries in all, with embedding and head."""
        ends = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return self.depth * self.layer_weights + ends

    def distinct_experts(self, tokens: int) -> float:
        """Experts of a layer that at least one of so many tokens is expected to go to, under uniform routing."""
        return self.experts * -math.expm1(tokens * math.log1p(-self.share)) if self.share < 1 else self.experts

    @property
    def share(self) -> float:
        """Of the experts, those that a token goes to."""
        return self.active_experts / self.experts


@dataclasses.dataclass(frozen=True)
class Workload:
    """So many sequences of ``prompt`` tokens, and ``new`` ones after each; ``element`` bytes hold one number."""

    batch: int = 1
    prompt: int = 1024
    new: int = 16
    element: int = 4

    def __post_init__(self) -> None:
        if min(self.batch, self.prompt, self.element) < 1 or self.new < 0:
            raise UserError(f"{self}: batch, prompt and element are at least 1, new at least 0")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Sustained speed: ``flops`` a second, and ``bandwidth`` in bytes a second.

    ``bandwidth`` is measured by how many bytes are read again and again: pairs of that size and the speed, by size;
    between two the logarithm is interpolated. A single pair is a memory without caches. ``layer`` and ``step`` are
    seconds that every layer and every pass take besides, whatever their size.
    """

    flops: float
    bandwidth: tuple[tuple[float, float], ...]
    layer: float = 0.0
    step: float = 0.0

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.bandwidth]
        speeds = [self.flops, *(speed for _, speed in self.bandwidth)]
        if not sizes or sizes != sorted(set(sizes)) or min(speeds) <= 0 or min(self.layer, self.step) < 0:
            raise UserError(f"{self}: speeds are above 0 and the sizes of bandwidth ascend")

    def bandwidth_at(self, size: float) -> float:
        """Bytes a second where ``size`` bytes are in use."""
        import numpy as np

        sizes, speeds = zip(*self.bandwidth, strict=True)
        return float(np.exp(np.interp(math.log(size), np.log(sizes), np.log(speeds))))


@dataclasses.dataclass(frozen=True)
class Operator:
    """``count`` times the same work: each ``flops`` operations on ``bytes`` moved."""

    name: str
    flops: float
    bytes: float
    count: int = 1

    @property
    def intensity(self) -> float:
        return self.flops / self.bytes

    def seconds(self, machine: Machine, bandwidth: float) -> float:
        """Of all ``count``: the longer of computing and moving."""
        return self.count * max(self.flops / machine.flops, self.bytes / bandwidth)


def linear(name: str, tokens: float, inputs: float, outputs: float, element: int, count: int = 1) -> Operator:
    """A matrix of ``inputs`` × ``outputs`` on so many tokens."""
    moved = element * (inputs * outputs + tokens * (inputs + outputs))
    return Operator(name, 2 * tokens * inputs * outputs, moved, count)


def operators(shape: Shape, workload: Workload, *, new: int, context: float) -> list[Operator]:
    """Those of one pass with ``new`` tokens of each sequence, which see ``context`` tokens at the most.

    A pass over more than one new token is causal, so that on average half of the context is seen. Logits are
    computed for each sequence's last token alone.
    """
    n, e, depth, d = workload.batch * new, workload.element, shape.depth, shape.hidden_size
    return [
        Operator("embedding", 0, 2 * e * n * d),
        Operator("element-wise", 0, e * n * _elements(shape), depth),
        linear("query", n, d, shape.query_size, e, depth),
        linear("key and value", n, d, shape.kv_size, e, 2 * depth),
        attention(shape, workload, new=new, context=context),
        linear("output", n, shape.query_size, d, e, depth),
        *([linear("router", n, d, shape.experts, e, depth)] if shape.experts > 1 else []),
        _mlp(shape, n, e),
        linear("head", workload.batch, d, shape.vocab_size, e),
    ]


def attention(shape: Shape, workload: Workload, *, new: int, context: float) -> Operator:
    """Scores and mixtures of all layers, whose keys and values are read once."""
    n = workload.batch * new
    seen = context - (new - 1) / 2
    moved = 2 * workload.element * (workload.batch * context * shape.kv_size + n * shape.query_size)
    return Operator("attention", 4 * n * seen * shape.query_size, moved, shape.depth)


def _elements(shape: Shape) -> float:
    """Numbers that a layer reads and writes for one token outside of its products.

    Two norms and two additions to the residual stream, the rotation of queries and keys in four operations, and the
    activation, with its product where it gates.
    """
    activation = 5 if shape.mlp_matrices == 3 else 2
    rotated = shape.query_size + shape.kv_size
    return 10 * shape.hidden_size + 8 * rotated + activation * shape.intermediate_size


def _mlp(shape: Shape, n: int, e: int) -> Operator:
    """One matrix of the MLP; each expert that is needed is read once."""
    d, active = shape.hidden_size, shape.intermediate_size
    entries = d * active / shape.active_experts * shape.distinct_experts(n)
    return Operator("mlp", 2 * n * d * active, e * (entries + n * (d + active)), shape.mlp_matrices * shape.depth)


@dataclasses.dataclass(frozen=True)
class Latency:
    """Seconds for the prompt, and for all new tokens together."""

    prefill: float
    decode: float

    @property
    def total(self) -> float:
        return self.prefill + self.decode


def latency(shape: Shape, machine: Machine, workload: Workload) -> Latency:
    """The sum over the operators of one pass over the prompt and one for each new token."""
    bandwidth = machine.bandwidth_at(memory(shape, workload))
    fixed = machine.step + shape.depth * machine.layer

    def seconds(work: Iterable[Operator]) -> float:
        return math.fsum(operator.seconds(machine, bandwidth) for operator in work)

    prompt = operators(shape, workload, new=workload.prompt, context=workload.prompt)
    same = [one for one in operators(shape, workload, new=1, context=1) if one.name != "attention"]
    contexts = range(workload.prompt + 1, workload.prompt + workload.new + 1)
    growing = (attention(shape, workload, new=1, context=context) for context in contexts)
    return Latency(fixed + seconds(prompt), workload.new * (fixed + seconds(same)) + seconds(growing))


def memory(shape: Shape, workload: Workload) -> float:
    """Bytes of all weights, and of the keys and values at the end."""
    cached = 2 * shape.depth * workload.batch * (workload.prompt + workload.new) * shape.kv_size
    return workload.element * (shape.weights + cached)
