"""The configuration of a run: what follows from what, what makes two runs the same, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.config import assign, flatten
from assay.errors import UserError
from assay.models import ModelConfig
from assay.training.config import EXECUTION, RunConfig, read_run_config


def parse(**values: Any) -> RunConfig:
    return RunConfig.parse(assign({}, {field.replace("__", "."): value for field, value in values.items()}))


class TestDefaults:
    def test_a_run_without_any_setting(self) -> None:
        config = RunConfig()
        assert config.model.hidden_size == 256
        assert config.model.max_length == config.data.sequence_length == 256
        assert config.tokens_per_step == 16 * 256
        assert config.training.tokens == 1_000_000
        assert (config.training.flops, config.training.seconds) == (None, None)
        assert (config.optimizer.name, config.schedule.name) == ("adamw", "warmup-stable-decay")
        assert config.seed == 0

    @pytest.mark.parametrize("width", [64, 256, 768, 1536])
    def test_the_learning_rate_follows_from_the_width(self, width: int) -> None:
        rate = ModelConfig(hidden_size=width).learning_rate()
        assert parse(model__hidden_size=width).optimizer.options == {"lr": pytest.approx(rate)}
        with_options = parse(model__hidden_size=width, optimizer={"name": "muon", "momentum": 0.5})
        assert with_options.optimizer.name == "muon"
        assert with_options.optimizer.options == {"momentum": 0.5, "lr": pytest.approx(rate)}

    def test_a_learning_rate_that_is_given_stays(self) -> None:
        """``optimizer.lr`` alone sets an option of the default optimizer."""
        config = parse(model__hidden_size=512, optimizer__lr=0.25)
        assert (config.optimizer.name, config.optimizer.options) == ("adamw", {"lr": 0.25})
        assert parse(optimizer="muon", optimizer__lr=0.25).optimizer.dump() == {"name": "muon", "lr": 0.25}

    def test_a_length_that_is_given_stays(self) -> None:
        config = parse(model__max_length=1024, data__sequence_length=64)
        assert (config.model.max_length, config.data.sequence_length) == (1024, 64)
        assert parse(data__sequence_length=64).model.max_length == 64

    def test_the_vocabulary_is_the_tokenizers_unless_a_larger_one_is_given(self) -> None:
        assert RunConfig().with_vocabulary(257).model.vocab_size == 257
        assert parse(model__vocab_size=300).with_vocabulary(257).model.vocab_size == 300
        assert parse(model__vocab_size=100).with_vocabulary(257).model.vocab_size == 257

    def test_another_seed_changes_nothing_else(self) -> None:
        one, other = flatten(RunConfig().dump()), flatten(RunConfig().with_seed(7).dump())
        assert {field for field in one if one[field] != other[field]} == {"seed"}


class TestBudget:
    @pytest.mark.parametrize(
        ("budget", "expected"),
        [
            ({"tokens": "250k"}, (250_000, None, None)),
            ({"flops": "1.5e15"}, (None, 1.5e15, None)),
            ({"seconds": "10min"}, (None, None, 600.0)),
        ],
    )
    def test_one_of_three(self, budget: dict[str, Any], expected: tuple[Any, ...]) -> None:
        training = parse(training=budget).training
        assert (training.tokens, training.flops, training.seconds) == expected

    @pytest.mark.parametrize(
        "budget", [{"tokens": 1, "flops": 1}, {"flops": 1, "seconds": 1}, {"tokens": 1, "flops": 1, "seconds": 1}]
    )
    def test_two_are_refused_by_name(self, budget: dict[str, Any]) -> None:
        with pytest.raises(UserError) as caught:
            parse(training=budget)
        assert str(caught.value) == f"training: {' and '.join(budget)} are both set; a run has one budget"


class TestDump:
    def test_is_parsed_back_to_an_equal_configuration(self) -> None:
        config = parse(
            model={
                "depth": 2,
                "norm": {"name": "seednorm", "num_heads": 2},
                "mixer": ["gated-attention*2", "softmax"],
            },
            data={"corpus": "text:/some/where", "tokenizer": "bpe:512"},
            optimizer={"name": "muon", "lr": 0.1, "betas": [0.5, 0.6]},
            training={"seconds": "2h", "trackers": ["tensorboard"]},
        ).with_vocabulary(512)
        plain = json.loads(json.dumps(config.dump()))
        assert RunConfig.parse(plain) == config
        assert RunConfig.parse(plain).dump() == plain
        assert RunConfig.parse(plain).run_id("x") == config.run_id("x")

    @settings(deadline=None)
    @given(st.integers(1, 12), st.integers(1, 64), st.integers(0, 2**31 - 1), st.floats(1e-6, 10))
    def test_derived_values_are_stable(self, depth: int, batch: int, seed: int, rate: float) -> None:
        config = parse(model__depth=depth, data__batch_size=batch, optimizer__lr=rate, seed=seed)
        again = RunConfig.parse(config.dump())
        assert again == config
        assert again.run_id("data") == config.run_id("data")


CHANGED: dict[str, Any] = {
    "model.depth": 5,
    "model.hidden_size": 512,
    "model.num_heads": 8,
    "model.num_kv_heads": 2,
    "model.head_dim": 128,
    "model.intermediate_size": 640,
    "model.vocab_size": 300,
    "model.max_length": 512,
    "model.init_std": 0.01,
    "model.norm": "seednorm",
    "model.placement": "peri-ln",
    "model.residual": "scaled",
    "model.mixer": ["softmax", "gated-attention"],
    "model.mlp": "relu2",
    "model.linear": "scale-vectors",
    "model.position": "learned",
    "model.head": "tied",
    "data.tokenizer": "bpe",
    "data.sequence_length": 128,
    "data.batch_size": 8,
    "data.validation": 0.1,
    "data.eval_bytes": 4096,
    "optimizer.name": "muon",
    "optimizer.lr": 0.125,
    "transfer": "weight-decay-scaling",
    "schedule": "cosine",
    "gradient": "noise",
    "selection": "lisa",
    "constraint": "normalize-and-project",
    "average": "mean",
    "loss": {"z_loss": 0.1},
    "training.tokens": 500_000,
    "training.flops": 1e15,
    "training.seconds": 60,
    "training.precision": "bfloat16",
    "training.grad_clip": 0.5,
    "training.micro_batch_size": 4,
    "training.evaluations": 4,
    "training.diagnostics": ["attention-logits"],
    "training.keep": [0.5],
    "seed": 1,
}
UNCHANGED: dict[str, Any] = {
    "training.compile": True,
    "training.sharding": "fsdp",
    "training.checkpoint_seconds": 1,
    "training.trackers": ["tensorboard"],
    "training.diagnostics_every": 7,
    "data.corpus": "text:/the/same/text/elsewhere",
    "data.order": "uniform",
}


class TestRunId:
    BASE = RunConfig().run_id("data")

    def test_is_sixteen_hexadecimal_digits(self) -> None:
        assert len(self.BASE) == 16
        assert int(self.BASE, 16) >= 0

    @pytest.mark.parametrize("field", CHANGED)
    def test_every_field_that_defines_a_run_changes_it(self, field: str) -> None:
        assert RunConfig.parse(assign({}, {field: CHANGED[field]})).run_id("data") != self.BASE

    def test_each_change_gives_another_id(self) -> None:
        ids = {RunConfig.parse(assign({}, {field: value})).run_id("data") for field, value in CHANGED.items()}
        assert len(ids) == len(CHANGED)

    @pytest.mark.parametrize("field", UNCHANGED)
    def test_how_a_run_is_carried_out_does_not(self, field: str) -> None:
        assert RunConfig.parse(assign({}, {field: UNCHANGED[field]})).run_id("data") == self.BASE

    def test_every_field_is_one_or_the_other(self) -> None:
        """A new field must be decided on: does it make another experiment?"""
        fields = flatten(RunConfig().dump()).keys()
        assert fields <= CHANGED.keys() | UNCHANGED.keys() | {"start"}  # of which test_start.py speaks
        assert {f"training.{field}" for field in EXECUTION} == UNCHANGED.keys() - {
            "data.corpus",
            "data.order",  # both enter by the data's fingerprint
            "training.diagnostics_every",
        }

    def test_how_often_to_diagnose_counts_where_diagnostics_are_named(self) -> None:
        runs = [parse(training={"diagnostics": ["voids"], "diagnostics_every": every}) for every in (100, 7)]
        assert len({run.run_id("data") for run in runs} | {self.BASE}) == 3

    def test_the_data_enter_by_their_content(self) -> None:
        assert RunConfig().run_id("other data") != self.BASE

    def test_what_is_derived_and_what_is_given_are_the_same_run(self) -> None:
        same = parse(
            model={"depth": 4, "hidden_size": 256, "norm": "rms-norm"},
            optimizer={"lr": ModelConfig().learning_rate()},
            training={"tokens": "1M"},
        )
        assert same.run_id("data") == self.BASE


class TestMistakes:
    @pytest.mark.parametrize(
        ("values", "line"),
        [
            ({"modle.depth": 2}, "unknown field 'modle'; nearest: model"),
            ({"training.token": 2}, "unknown field 'training.token'; nearest: tokens"),
            ({"model.depth": 0}, "model.depth=0: input should be greater than 0"),
            ({"model.norm": "seednrm"}, "model.norm: unknown norm 'seednrm'; nearest: seednorm"),
            ({"optimizer.momentum": 0.9}, "optimizer: optimizer 'adamw' has no option 'momentum'; "),
            ({"optimizer.lr": "fast"}, "optimizer: optimizer 'adamw', option lr='fast': "),
            ({"schedule": 3}, "schedule: a schedule is a name, or a table with 'name' and its options, not 3"),
            ({"loss": "hinge"}, "loss: unknown loss 'hinge'; "),
            ({"seed": -1}, "seed=-1: input should be greater than or equal to 0"),
            ({"seed": 2**31}, "seed=2147483648: input should be less than 2147483648"),
            ({"training.tokens": "lots"}, "training.tokens: 'lots' is not a number such as 250000, 250k or 1.5M"),
            ({"training.seconds": "soon"}, "training.seconds: 'soon' is not a time such as 90, 90s, 10min or 2h"),
            ({"training.flops": "1e999"}, "training.flops='1e999': input should be a finite number"),
            (
                {"training.precision": "float16"},
                "training.precision='float16': input should be 'float32' or 'bfloat16'",
            ),
            ({"training.grad_clip": 0}, "training.grad_clip=0: input should be greater than 0"),
            ({"data.eval_bytes": 1}, "data.eval_bytes=1: input should be greater than or equal to 4"),
            (
                {"model.num_heads": 3},
                "model: num_heads=3 does not divide hidden_size=256; 2 does, or set head_dim",
            ),
            (
                {"training.micro_batch_size": 5},
                "training.micro_batch_size=5 does not divide data.batch_size=16",
            ),
            (
                {"model.position": "learned", "model.max_length": 100},
                "model.max_length=100 is shorter than data.sequence_length=256",
            ),
        ],
    )
    def test_one_line_with_field_and_remedy(self, values: dict[str, Any], line: str) -> None:
        with pytest.raises(UserError) as caught:
            RunConfig.parse(assign({}, values))
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_status == 2


class TestReading:
    def test_nothing_a_table_a_file_or_a_configuration(self, tmp_path: Path) -> None:
        file = tmp_path / "run.toml"
        file.write_text('seed = 3\n[model]\ndepth = 2\nnorm = "seednorm"\n[training]\ntokens = "10k"\n')
        table = {"seed": 3, "model": {"depth": 2, "norm": "seednorm"}, "training": {"tokens": 10_000}}
        assert read_run_config() == RunConfig()
        assert read_run_config(file) == read_run_config(str(file)) == read_run_config(table) == RunConfig.parse(table)

    def test_values_are_set_over_it(self) -> None:
        config = read_run_config({"model": {"norm": "seednorm"}}, {"model.norm.num_heads": 4, "seed": 2})
        assert config.model.norm.dump() == {"name": "seednorm", "num_heads": 4}
        assert read_run_config(config, {"seed": 5}) == config.with_seed(5)
        assert read_run_config(config) is config

    def test_a_configuration_keeps_what_was_derived(self) -> None:
        """Of a whole configuration each field is given: a new depth does not widen it."""
        config = read_run_config(RunConfig(), {"model.depth": 2})
        assert (config.model.depth, config.model.hidden_size) == (2, 256)
        assert read_run_config({}, {"model.depth": 2}).model.hidden_size == 128

    def test_files_that_cannot_be_read_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"cannot read configuration .*none\.toml"):
            read_run_config(tmp_path / "none.toml")
        (tmp_path / "bad.toml").write_text("depth 4")
        with pytest.raises(UserError, match=r"bad\.toml: not valid TOML"):
            read_run_config(tmp_path / "bad.toml")
