from __future__ import annotations

import pytest
import torch

from assay.nn.position import Position, Positions, positions


def test_none_changes_nothing() -> None:
    position = positions.build("none", hidden_size=4, head_dim=2, max_length=3)
    assert type(position) is Position
    x, ids = torch.randn(2, 3, 4), torch.arange(3)[None]
    assert position.embed(x, ids) is x
    assert position.rotation(ids, torch.float32) is None


def test_without_a_rotation_queries_and_keys_stay() -> None:
    x = torch.randn(1, 2, 3, 4)
    assert Positions().rotate(x) is x


def test_pairs_are_the_halves_of_a_head() -> None:
    quarter = (torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0]]]]))
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    assert Positions(quarter).rotate(x).flatten().tolist() == [-3.0, 2.0, 1.0, 4.0]


def test_learned_adds_the_vector_of_each_position() -> None:
    position = positions.build("learned", hidden_size=4, max_length=6)
    x, ids = torch.randn(2, 3, 4), torch.tensor([[0, 1, 2], [5, 3, 0]])
    y = position.embed(x, ids)
    for row in range(2):
        for t in range(3):
            assert torch.equal(y[row, t], x[row, t] + position.table.weight[ids[row, t]])
    assert position.rotation(ids, torch.float32) is None


def test_learned_has_no_vector_beyond_max_length() -> None:
    position = positions.build("learned", hidden_size=4, max_length=6)
    assert position.table.weight.shape == (6, 4)
    with pytest.raises(IndexError):
        position.embed(torch.zeros(1, 7, 4), torch.arange(7)[None])
