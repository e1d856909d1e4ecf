"""When compiling repays, and that one compiled objective serves all runs with its graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from assay.config import assign
from assay.models import Decoder
from assay.models.initialization import initialize
from assay.training.budget import Budget
from assay.training.compilation import EAGER_FLOPS, Compiled, repays, saving
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

    @pytest.mark.parametrize("device", ["cpu", "cuda", "other"])
    def test_a_run_of_seconds_repays_from_its_threshold_on(self, device: str) -> None:
        """A third of its time (at this width) is more than 20 s and 2 s a layer."""
        threshold = (20 + 2 * 2) / SAVING
        for factor, expected in ((0.999, False), (1.001, True)):
            table = assign(TINY, {"training": {"seconds": factor * threshold}})
            assert repays(RunConfig.parse(table), device=device) is expected

    def test_runs_that_share_a_graph_share_its_cost(self) -> None:
        table = assign(TINY, {"training": {"seconds": 1.001 * (20 + 2 * 2) / SAVING / 4}})
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
        steps = (20 + 2 * 2) / SAVING * EAGER_FLOPS["cpu"] * threads / price
        for factor, expected in ((0.99, False), (1.01, True)):
            run = config(training__tokens=24 * int(factor * steps))
            assert repays(run, device="cpu", threads=threads if given else None) is expected

    def test_a_gpu_does_more_in_its_time(self) -> None:
        price = Budget.of(config()).flops_per_step
        tokens = 24 * int(1.01 * (20 + 2 * 2) / SAVING * EAGER_FLOPS["cuda"] / price)
        assert repays(config(training__tokens=tokens), device="cuda")
        assert not repays(config(training__tokens=tokens // 2), device="cuda")
        assert repays(config(training__tokens=tokens // 2), device="cpu")


class TestCompiled:
    def test_the_graph_stays_and_the_parameters_are_new(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch._dynamo.reset()
        monkeypatch.setattr(torch, "compile", lambda module: torch._dynamo.optimize("eager")(module))
        first, second = objective(config(), seed=0), objective(config(seed=1), seed=1)
        ids = torch.arange(24).view(3, 8)
        expected = {seed: o(ids, ids.roll(1)).item() for seed, o in ((0, first), (1, second))}
        kept = Compiled()
        one, call = kept.get(config(), first)
        call(ids, ids.roll(1)).backward()
        assert call(ids, ids.roll(1)).item() == pytest.approx(expected[0], abs=1e-6)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]

        other, again = kept.get(config(seed=1), second)
        assert other is one
        assert again is call
        assert all(p.grad is None for p in other.parameters())
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), second.parameters(), strict=True))
        assert again(ids, ids.roll(1)).item() == pytest.approx(expected[1], abs=1e-6)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs

    @pytest.mark.parametrize("norm", ["powernorm", "unified-norm"])
    def test_running_statistics_are_the_eager_ones_and_start_anew_with_each_run(
        self, monkeypatch: pytest.MonkeyPatch, norm: str
    ) -> None:
        """They move in forward and in backward, inside of one graph."""
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        monkeypatch.setattr(torch, "compile", lambda module: torch._dynamo.optimize("aot_eager")(module))
        norms = {"model__norm": {"name": norm, "warmup": 2}, "model__depth": 1}
        kept = Compiled()
        for seed in (0, 1):
            eager = objective(config(**norms, seed=seed), seed=seed)
            one, call = kept.get(config(**norms, seed=seed), objective(config(**norms, seed=seed), seed=seed))
            for step in range(5):
                ids = (torch.arange(24) * (step + 3) % 31).view(3, 8)
                expected = eager(ids, ids.roll(1))
                loss = call(ids, ids.roll(1))
                assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
                expected.backward()
                loss.backward()
            torch.testing.assert_close(one.state_dict(), eager.state_dict())
            for ours, theirs in zip(one.parameters(), eager.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1

    @pytest.fixture
    def uncompiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "compile", lambda module: module)

    @pytest.mark.parametrize(
        "values",
        [
            {"model__depth": 3},
            {"model__norm": "seednorm"},
            {"loss": {"label_smoothing": 0.1}},
            {"training__precision": "bfloat16"},
            {"data__batch_size": 6},
            {"data__sequence_length": 4},
            {"training__micro_batch_size": 1},
        ],
    )
    def test_what_changes_the_graph_gets_its_own(self, uncompiled: None, values: dict[str, Any]) -> None:
        kept = Compiled()
        one, _ = kept.get(config(), objective(config()))
        changed = config(**values)
        fresh = objective(changed)
        assert kept.get(changed, fresh)[0] is fresh
        assert kept.get(config(), objective(config(), seed=3))[0] is one

    @pytest.mark.parametrize(
        "values",
        [
            {"seed": 5},
            {"optimizer": "muon"},
            {"optimizer__lr": 0.5},
            {"schedule": "cosine"},
            {"training__tokens": 480},
            {"training__grad_clip": 0.5},
        ],
    )
    def test_what_does_not_is_shared(self, uncompiled: None, values: dict[str, Any]) -> None:
        kept = Compiled()
        one, _ = kept.get(config(), objective(config()))
        assert kept.get(config(**values), objective(config()))[0] is one

    def test_the_least_recently_used_goes(self, uncompiled: None) -> None:
        kept = Compiled(capacity=2)
        configs = [config(model__depth=depth) for depth in (1, 2, 3)]
        first, second = (kept.get(c, objective(c))[0] for c in configs[:2])
        assert kept.get(configs[0], objective(configs[0]))[0] is first
        kept.get(configs[2], objective(configs[2]))
        assert kept.get(configs[0], objective(configs[0]))[0] is first
        assert kept.get(configs[1], objective(configs[1]))[0] is not second
