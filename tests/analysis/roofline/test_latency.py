from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from assay.analysis.roofline.latency import Machine, Operator, Shape, Workload, latency, linear, memory, operators
from assay.errors import UserError
from assay.models import Decoder, ModelConfig

MACHINE = Machine(10e12, ((1e6, 200e9),))
SHAPE = Shape(
    depth=4, hidden_size=128, query_size=128, kv_size=64, intermediate_size=344, vocab_size=257, mlp_matrices=3
)
WORK = Workload(batch=1, prompt=64, new=4, element=2)


def seconds(operator: Operator, machine: Machine = MACHINE) -> float:
    return operator.seconds(machine, machine.bandwidth[0][1])


def test_one_token_is_bound_by_memory_and_many_by_computing() -> None:
    one, many = (linear("linear", n, 1024, 1024, 2) for n in (1, 1024))
    assert (one.flops, one.bytes) == (2_097_152, 2_101_248)
    assert one.intensity == pytest.approx(0.99805, abs=1e-5)
    assert seconds(one) == pytest.approx(10.5062e-6, rel=1e-5)
    assert (many.flops, many.bytes) == (2 * 1024**3, 6_291_456)
    assert many.intensity == pytest.approx(341.33, abs=0.01)
    assert seconds(many) == pytest.approx(214.748e-6, rel=1e-5)
    assert seconds(one, Machine(10e12, ((1e6, 100e9),))) == pytest.approx(2 * seconds(one))
    assert seconds(many, Machine(5e12, ((1e6, 200e9),))) == pytest.approx(2 * seconds(many))


@given(st.floats(1, 1e12), st.floats(1, 1e12))
def test_time_lies_between_the_larger_part_and_the_sum(flops: float, moved: float) -> None:
    compute, move = flops / MACHINE.flops, moved / 200e9
    took = seconds(Operator("any", flops, moved))
    assert max(compute, move) == took <= compute + move <= 2 * took


def test_experts_that_are_read() -> None:
    shape = dataclasses.replace(SHAPE, experts=16, active_experts=2)
    found = [shape.distinct_experts(n) for n in (1, 8, 1024)]
    assert found == pytest.approx([2, 10.5023, 16.0], abs=1e-4)
    assert SHAPE.distinct_experts(7) == 1
    assert memory(shape, WORK) - memory(SHAPE, WORK) == 2 * 4 * (3 * 128 * 344 * 7 + 128 * 16)


def test_half_the_bytes_take_half_the_time_where_memory_binds() -> None:
    machine = Machine(1e30, ((1e6, 1e9),))
    wide = latency(SHAPE, machine, dataclasses.replace(WORK, element=4)).total
    assert latency(SHAPE, machine, WORK).total == pytest.approx(wide / 2)


@pytest.mark.parametrize("field", ["depth", "hidden_size", "kv_size", "intermediate_size", "vocab_size"])
def test_a_larger_network_is_not_faster(field: str) -> None:
    larger = dataclasses.replace(SHAPE, **{field: 2 * getattr(SHAPE, field)})
    assert latency(larger, MACHINE, WORK).prefill > latency(SHAPE, MACHINE, WORK).prefill
    assert latency(larger, MACHINE, WORK).decode > latency(SHAPE, MACHINE, WORK).decode


@pytest.mark.parametrize("field", ["prompt", "new", "batch"])
def test_more_work_is_not_faster(field: str) -> None:
    more = dataclasses.replace(WORK, **{field: 2 * getattr(WORK, field)})
    assert latency(SHAPE, MACHINE, more).total > latency(SHAPE, MACHINE, WORK).total


def test_decoding_reads_at_least_all_weights_and_keys() -> None:
    """Every matrix but the embedding, of which one row is read, and what the cache holds at the start."""
    read = 2 * (SHAPE.weights - 257 * 128) + 2 * 2 * 4 * WORK.prompt * 64
    assert latency(SHAPE, MACHINE, WORK).decode / WORK.new >= read / 200e9


def test_the_sum_over_steps_is_that_of_single_steps() -> None:
    """Each new token's pass, operator by operator, with the constants of a layer and of a pass."""
    machine = dataclasses.replace(MACHINE, layer=1e-4, step=1e-3)
    steps = [operators(SHAPE, WORK, new=1, context=64 + number) for number in range(1, 5)]
    expected = sum(seconds(one) for work in steps for one in work) + 4 * (1e-3 + 4 * 1e-4)
    assert latency(SHAPE, machine, WORK).decode == pytest.approx(expected, rel=1e-12)


def test_bandwidth_follows_what_is_in_use() -> None:
    machine = Machine(1e12, ((1e6, 40e9), (1e8, 10e9)))
    found = [machine.bandwidth_at(size) for size in (1e3, 1e6, 1e7, 1e8, 1e12)]
    assert found == pytest.approx([40e9, 40e9, 20e9, 10e9, 10e9])


@pytest.mark.parametrize(("mlp", "kv"), [("swiglu", 1), ("gelu", 4), ("relu2", 2)])
def test_operations_are_those_that_torch_counts(mlp: str, kv: int) -> None:
    """But for causal attention, of which torch counts all, and the logits of all tokens."""
    config = ModelConfig.parse(
        {"depth": 3, "hidden_size": 64, "num_heads": 4, "num_kv_heads": kv, "mlp": mlp, "vocab_size": 32}
        | {"max_length": 16}
    )
    with torch.device("meta"):
        model, ids = Decoder(config), torch.zeros(2, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(ids)
    found = operators(Shape.of(config), Workload(batch=2, prompt=16), new=16, context=16)
    flops = {one.name: one.flops * one.count for one in found}
    whole = flops | {"head": flops["head"] * 16, "attention": flops["attention"] * 16 / 8.5}
    assert sum(whole.values()) == counter.get_total_flops()
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2)
    assert Shape.of(config).weights == weights


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"mixer": "relu-attention", "vocab_size": 9}, "latency is known for mixer 'softmax'"),
        ({}, "model.vocab_size is not set"),
    ],
)
def test_a_network_of_unknown_cost_is_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Shape.of(ModelConfig.parse(table))


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="depth=0 is below 1"):
        dataclasses.replace(SHAPE, depth=0)
    with pytest.raises(UserError, match="active_experts=3 is above experts=2"):
        dataclasses.replace(SHAPE, experts=2, active_experts=3)
    with pytest.raises(UserError, match="prompt=0"):
        Workload(prompt=0)
    with pytest.raises(UserError, match="speeds are above 0"):
        Machine(0.0, ((1e6, 1e9),))
    with pytest.raises(UserError, match="the sizes of bandwidth ascend"):
        Machine(1.0, ((1e6, 1e9), (1e5, 1e9)))
