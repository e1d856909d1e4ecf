"""Every trainable parameter is in one group, with the role and the decay that its module gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from assay.models import Decoder, ModelConfig
from assay.optim import parameter_groups

SIZES = {"depth": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 11, "max_length": 8}


def described(model: nn.Module) -> dict[str, tuple[str, bool]]:
    """Name of a parameter → (role, decay)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["role"], group["decay"])
        for group in parameter_groups(model)
        for parameter in group["params"]
    }


def test_roles_of_a_decoder() -> None:
    model = Decoder(ModelConfig(**SIZES, position="learned"))
    roles = described(model)
    assert roles["embedding.weight"] == ("embedding", True)
    assert roles["position.table.weight"] == ("embedding", True)
    assert roles["head.projection.weight"] == ("embedding", True)
    assert roles["layers.0.mixer.branch.query.weight"] == ("matrix", True)
    assert roles["layers.1.mlp.branch.down.weight"] == ("matrix", True)
    assert roles["layers.1.mlp.input_norm.weight"] == ("vector", False)
    matrices = {name for name, (role, _) in roles.items() if role == "matrix"}
    assert len(matrices) == 2 * 7


def test_a_module_may_have_its_vectors_decayed() -> None:
    """SeeDNorm decays α and β, not γ."""
    roles = described(Decoder(ModelConfig(**SIZES, norm="seednorm")))
    norm = {name: role for name, role in roles.items() if name.startswith("final_norm.")}
    decayed = {name.rpartition(".")[2] for name, (_, decay) in norm.items() if decay}
    assert decayed == {"alpha", "beta"}
    assert {name.rpartition(".")[2] for name in norm} - decayed
    assert all(roles[name][1] for name in roles if roles[name][0] != "vector")


@pytest.mark.parametrize(
    "options", [{}, {"norm": "seednorm", "head": "tied"}, {"mlp": "gelu", "position": "learned"}]
)
def test_each_trainable_parameter_is_in_exactly_one_group(options: dict[str, Any]) -> None:
    model = Decoder(ModelConfig(**SIZES, **options))
    model.embedding.weight.requires_grad_(False)
    grouped = [id(p) for group in parameter_groups(model) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    assert id(model.embedding.weight) not in grouped


def test_a_shared_parameter_is_taken_once_with_its_first_role() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    assert described(model) == {"0.weight": ("embedding", True)}


def test_groups_keep_the_models_order_and_differ() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    groups = parameter_groups(model)
    assert [(group["role"], group["decay"]) for group in groups] == [("matrix", True), ("vector", False)]
    assert [id(p) for p in groups[0]["params"]] == [id(layer.weight) for layer in model]
    assert [id(p) for p in groups[1]["params"]] == [id(layer.bias) for layer in model]


def test_a_kernel_of_a_convolution_is_a_matrix_and_a_scalar_a_vector() -> None:
    model = nn.Conv1d(2, 3, 4)
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    assert described(model) == {
        "weight": ("matrix", True),
        "bias": ("vector", False),
        "scale": ("vector", False),
    }
