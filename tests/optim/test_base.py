"""What all optimizers of the registry share: their options by name, groups by role, and transformers' Trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from assay.optim import optimizers, parameter_groups

OPTIONS = {"galore": {"rank": 4, "update_proj_gap": 4}, "fira": {"rank": 4, "update_proj_gap": 4}}


@pytest.mark.parametrize("name", optimizers.names())
def test_a_misspelt_argument_is_no_option_of_the_group(name: str) -> None:
    with pytest.raises(TypeError, match="wieght_decay"):
        optimizers[name](params=[nn.Parameter(torch.zeros(2, 2))], lr=0.1, wieght_decay=0.1)


@pytest.mark.parametrize("name", sorted(set(optimizers.names()) - {"sgdp"}))
def test_all_that_have_moments_of_adam_check_them_alike(name: str) -> None:
    assert optimizers.validate(name, {"betas": [0.8, 0.9], "weight_decay": 0, "eps": 1e-6})["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(
    "name", ["exponentiated-gradient", "fira", "galore", "multi-normalization", "muon", "sinkgd"]
)
def test_options_of_the_other_parameters_reach_their_group(name: str) -> None:
    optimizer = optimizers.build(
        name, {"betas": (0.5, 0.6), "eps": 0.25, "weight_decay": 0.125}, params=[nn.Parameter(torch.ones(3))], lr=0.1
    )
    (group,) = optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.6), 0.25, 0.0)
    assert optimizer.defaults.keys() >= {"betas", "eps", "lr"}


@pytest.mark.parametrize("name", optimizers.names())
def test_in_transformers_trainer_and_resumed_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    """Through ``optimizers=``, stopped after three of six steps: the same weights as a plain loop's."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        use_cache=False,
        tie_word_embeddings=False,
    )
    rows = torch.randint(31, (24, 10), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    fresh = LlamaForCausalLM(config)

    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        return optimizers.build(name, OPTIONS.get(name, {}), params=parameter_groups(model), lr=0.01)

    def trained(steps: int, resume: bool) -> nn.Module:
        model = copy.deepcopy(fresh)
        arguments: dict[str, Any] = {
            "max_steps": steps,
            "save_strategy": "steps",
            "save_steps": 3,
            "save_total_limit": 2,
        }
        arguments |= {"per_device_train_batch_size": 4, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
        arguments |= {"report_to": [], "disable_tqdm": True, "use_cpu": True, "train_sampling_strategy": "sequential"}
        dataset = [{"input_ids": row, "labels": row} for row in rows]
        trainer = Trainer(
            model,
            TrainingArguments(tmp_path, **arguments),
            train_dataset=dataset,
            optimizers=(optimizer_of(model), None),
        )
        trainer.train(resume_from_checkpoint=resume)
        return model

    trained(3, resume=False)
    resumed = trained(6, resume=True)
    plain = copy.deepcopy(fresh)
    optimizer = optimizer_of(plain)
    for batch in rows.split(4):
        optimizer.zero_grad()
        plain(batch, labels=batch).loss.backward()
        optimizer.step()
    for a, b in zip(resumed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(plain.parameters(), fresh.parameters(), strict=True))
