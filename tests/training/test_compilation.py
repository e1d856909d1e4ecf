"""When compiling repays, and that like layers share one graph which computes what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from assay.config import assign
from assay.models import Decoder
from assay.models.initialization import initialize
from assay.training.budget import Budget
from assay.training.compilation import EAGER_FLOPS, SECONDS, as_written, compile_layers, repays, saving
from assay.training.config import RunConfig
from assay.training.objective import Objective

SAVING = 1 / 3
TINY = {
    "model": {"depth": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 31},
    "data": {"sequence_length": 8, "batch_size": 3},
    "training": {"tokens": 240},
}


def config(**values: Any) -> RunConfig:
    return RunConfig.parse(assign(TINY, {field.replace("__", "."): value for field, value in values.items()}))


def objective(config: RunConfig, seed: int = 0) -> Objective:
    made = Objective(Decoder(config.model), config.loss.build(), config.training.precision)
    initialize(made.model, seed, config.model.init_std)
    return made


class TestRepays:
    def test_what_is_configured_decides(self) -> None:
        assert repays(config(training__compile=True), device="cpu")
        assert not repays(config(training__compile=False, training__tokens=10**15), device="cpu", sharing=99)

    def test_it_takes_a_compiler_and_parameters_that_stay_the_same(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        long = config(training__tokens=10**15)
        assert repays(long, device="cpu")
        assert not repays(config(training__tokens=10**15, selection="lisa"), device="cpu")
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        assert not repays(long, device="cpu")
        assert repays(long, device="cuda")

    @pytest.mark.parametrize("device", ["cpu", "cuda", "other"])
    def test_a_run_of_seconds_repays_from_its_threshold_on(self, device: str) -> None:
        """A third of its time (at this width) is more than compiling takes."""
        threshold = SECONDS / SAVING
        for factor, expected in ((0.999, False), (1.001, True)):
            table = assign(TINY, {"training": {"seconds": factor * threshold}})
            assert repays(RunConfig.parse(table), device=device) is expected

    def test_runs_that_share_a_graph_share_its_cost(self) -> None:
        table = assign(TINY, {"training": {"seconds": 1.001 * SECONDS / SAVING / 4}})
        sharing = [repays(RunConfig.parse(table), device="cpu", sharing=n) for n in (1, 3, 4, 8)]
        assert sharing == [False, False, True, True]

    @pytest.mark.parametrize(
        ("precision", "width", "share"),
        [("float32", 16, 1 / 3), ("float32", 160, 0.25), ("bfloat16", 160, 1 / 3), ("bfloat16", 320, 0.25)],
    )
    def test_wide_models_save_less(self, precision: str, width: int, share: float) -> None:
        assert saving(config(training__precision=precision, model__hidden_size=width)) == pytest.approx(share)

    @pytest.mark.parametrize("given", [True, False])
    @pytest.mark.parametrize("threads", [1, 2])
    def test_tokens_count_by_their_flops_and_the_threads(
        self, monkeypatch: pytest.MonkeyPatch, threads: int, given: bool
    ) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 7 if given else threads)
        price = Budget.of(config()).flops_per_step
        steps = SECONDS / SAVING * EAGER_FLOPS["cpu"] * threads / price
        for factor, expected in ((0.99, False), (1.01, True)):
            run = config(training__tokens=24 * int(factor * steps))
            assert repays(run, device="cpu", threads=threads if given else None) is expected

    def test_a_gpu_does_more_in_its_time(self) -> None:
        price = Budget.of(config()).flops_per_step
        tokens = 24 * int(1.01 * SECONDS / SAVING * EAGER_FLOPS["cuda"] / price)
        assert repays(config(training__tokens=tokens), device="cuda")
        assert not repays(config(training__tokens=tokens // 2), device="cuda")
        assert repays(config(training__tokens=tokens // 2), device="cpu")


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured and differentiated as ever, but not turned into kernels, which would take a minute."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", lambda call, **_: torch._dynamo.optimize("aot_eager")(call))


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.usefixtures("compiling")
class TestLayers:
    @pytest.mark.parametrize(("values", "expected"), [({}, 1), ({"model__placement": "layernorm-scaling"}, 2)])
    def test_layers_share_a_graph_over_depth_and_runs(self, values: dict[str, Any], expected: int) -> None:
        """Where layers are scaled by a factor of their depth, the first, which is not, has one of its own."""
        ids = torch.arange(24).view(3, 8)
        for depth, seed in ((4, 0), (4, 1), (2, 2)):
            run = config(**values, model__depth=depth)
            eager, compiled = objective(run, seed), objective(run, seed)
            compile_layers(compiled.model)
            truth, loss = eager(ids, ids.roll(1)), compiled(ids, ids.roll(1))
            assert loss.item() == pytest.approx(truth.item(), abs=1e-6)
            truth.backward()
            loss.backward()
            for ours, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad)
        assert graphs() == expected

    def test_as_written_nothing_is_compiled(self) -> None:
        one = objective(config())
        compile_layers(one.model)
        with torch.no_grad(), as_written(True):
            one(torch.arange(24).view(3, 8))
        assert graphs() == 0
        one(torch.arange(24).view(3, 8))
        assert graphs() == 1

    def test_weights_keep_their_names(self) -> None:
        one, other = objective(config()), objective(config())
        compile_layers(one.model)
        assert one.state_dict().keys() == other.state_dict().keys()

    @pytest.mark.parametrize("norm", ["powernorm", "unified-norm"])
    def test_running_statistics_are_the_eager_ones_in_every_run(self, norm: str) -> None:
        """They move in forward and in backward, inside of one graph."""
        norms = {"model__norm": {"name": norm, "warmup": 2}, "model__depth": 1}
        for seed in (0, 1):
            eager, compiled = (objective(config(**norms), seed) for _ in range(2))
            compile_layers(compiled.model)
            for step in range(5):
                ids = (torch.arange(24) * (step + 3) % 31).view(3, 8)
                expected, loss = eager(ids, ids.roll(1)), compiled(ids, ids.roll(1))
                assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
                expected.backward()
                loss.backward()
            torch.testing.assert_close(compiled.state_dict(), eager.state_dict())
            for ours, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad)
        assert graphs() == 1

    def test_layers_that_differ_in_kind_are_all_compiled(self) -> None:
        """Attention over earlier outputs sees one more of them in each layer."""
        run = config(model__residual="attention-residuals", model__depth=12)
        eager, compiled = objective(run), objective(run)
        compile_layers(compiled.model)
        ids = torch.arange(24).view(3, 8)
        assert compiled(ids, ids.roll(1)).item() == pytest.approx(eager(ids, ids.roll(1)).item(), abs=1e-6)
        assert torch._dynamo.utils.counters["frames"]["ok"] >= torch._dynamo.utils.counters["frames"]["total"] - 1
