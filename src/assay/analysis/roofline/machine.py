"""The speed of the machine at hand, and the latency of a decoder on it, by the clock."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from assay.analysis.roofline.latency import Latency, Machine, Shape, Workload, latency
from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.initialization import initialize

SIZES = tuple(float(1 << power) for power in range(18, 29, 2))
"""Bytes of weights that the bandwidth is measured at: 256 KiB to 256 MiB."""

ROWS, WIDTH = 256, 512
"""Tokens and features of the products that the operations per second are measured with."""

_TINY = {"hidden_size": 16, "num_heads": 1, "vocab_size": 16, "max_length": 64}


def measure_machine(
    *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seconds: float = 0.1
) -> Machine:
    """What products of matrices sustain here, and what a decoder's layers and passes cost besides.

    ``flops`` is measured with ``ROWS`` tokens, ``bandwidth`` with one, both on matrices that take turns, so that none
    is where the last product left it. ``layer`` and ``step`` are what remains of the measured decoding of decoders
    of 1 and 5 layers that compute next to nothing. ``seconds`` is spent on each number.
    """

    def rate(rows: int, width: int, size: float) -> tuple[float, float]:
        """Matrices of ``size`` bytes in all, each times ``rows`` tokens, per second."""
        matrix = torch.ones(width, width, dtype=dtype, device=device)
        weights = [matrix.clone() for _ in range(max(1, round(size / matrix.nbytes)))]
        x = torch.ones(rows, width, dtype=dtype, device=device)

        def call() -> None:
            for weight in weights:
                F.linear(x, weight)

        return len(weights) / typical(call, seconds), float(matrix.nbytes)

    products, _ = rate(ROWS, WIDTH, 1 << 24)
    reads = [rate(1, 256 if size < 1 << 24 else 1024, size) for size in SIZES]
    bandwidth = tuple((size, number * each) for size, (number, each) in zip(SIZES, reads, strict=True))
    bare = Machine(products * 2 * ROWS * WIDTH**2, bandwidth)
    workload = Workload(prompt=8, new=8, element=dtype.itemsize)
    left = {}
    for depth in (1, 5):
        config = ModelConfig.parse({"depth": depth, **_TINY})
        took = measure_latency(config, workload, dtype=dtype, device=device, seconds=2 * seconds)
        left[depth] = (took.decode - latency(Shape.of(config), bare, workload).decode) / workload.new
    layer = max(0.0, (left[5] - left[1]) / 4)
    return Machine(bare.flops, bandwidth, layer, max(0.0, left[1] - layer))


@torch.inference_mode()
def typical(call: Callable[[], object], seconds: float) -> float:
    """The median of as many calls as fit into ``seconds`` after a first one; there are at least three.

    On one thread of a CPU it is the thread's own time, which leaves out what other processes take; else it is that of
    the clock.
    """
    accelerator = torch.accelerator.is_available()
    clock = time.perf_counter if accelerator or torch.get_num_threads() > 1 else time.thread_time
    wait = torch.accelerator.synchronize if accelerator else lambda: None
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        wait()
        start = clock()
        call()
        wait()
        times.append(clock() - start)
    return statistics.median(times)


def measure_latency(
    config: ModelConfig,
    workload: Workload,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seconds: float = 0.5,
) -> Latency:
    """Of a decoder with random weights: the prompt in one pass, then token by token with a cache.

    Each pass is timed by itself, again and again, and the median counts. ``seconds`` is spent on the prompt and on
    all tokens together, or what three repetitions take. Raises ``UserError`` without a vocabulary.
    """
    if config.vocab_size is None:
        raise UserError("model.vocab_size is not set, and the head's latency depends on it")
    length = workload.prompt + workload.new
    decoder = Decoder(config.model_copy(update={"max_length": max(config.max_length or 0, length)}))
    initialize(decoder, 0, config.init_std)
    decoder.to(device=device, dtype=dtype).eval()
    cache = StaticCache(config, workload.batch, length, dtype, device)
    ids = torch.zeros(workload.batch, workload.prompt, dtype=torch.long, device=device)

    def prefill() -> None:
        cache.length = 0
        _last_logits(decoder, ids, cache)

    def step(number: int) -> None:
        cache.length = workload.prompt + number
        position = torch.full((1, 1), cache.length, device=device)
        mask = torch.ones(1, 1, 1, cache.length + 1, dtype=torch.bool, device=device)
        _last_logits(decoder, ids[:, :1], cache, position_ids=position, mask=mask)

    each = seconds / max(1, workload.new)
    first = typical(prefill, seconds)
    return Latency(first, math.fsum(typical(partial(step, number), each) for number in range(workload.new)))


def _last_logits(
    decoder: Decoder, ids: Tensor, cache: StaticCache, **options: Tensor
) -> Float[Tensor, "batch 1 vocab"]:
    hidden = decoder.hidden(ids, cache=cache, **options)
    logits: Tensor = decoder.head(hidden[:, -1:], decoder.embedding.weight)
    return logits


class StaticCache:
    """Keys and values of up to ``length`` tokens, in place; ``length`` of the object is how many there are.

    Every layer of a pass writes behind the same tokens, so that the pass may be done again.
    """

    def __init__(
        self, config: ModelConfig, batch: int, length: int, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        size = (config.depth, batch, config.num_kv_heads, length, config.head_dim)
        self.keys, self.values = (torch.zeros(size, dtype=dtype, device=device) for _ in range(2))
        self.length = 0

    def update(
        self,
        key_states: Float[Tensor, "batch heads new dim"],
        value_states: Float[Tensor, "batch heads new dim"],
        layer_idx: int,
    ) -> tuple[Float[Tensor, "batch heads all dim"], Float[Tensor, "batch heads all dim"]]:
        end = self.length + key_states.shape[2]
        found = []
        for kept, new in ((self.keys, key_states), (self.values, value_states)):
            kept[layer_idx, :, :, self.length : end] = new
            found.append(kept[layer_idx, :, :, :end])
        return found[0], found[1]
