"""Blocks of networks of every kind, what lies before and behind them, and drawing without replacement."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.optim.layers import Switch, blocks_of, draw, suffixes


def decoder(depth: int = 3, **options: object) -> Decoder:
    torch.manual_seed(0)
    return Decoder(ModelConfig.parse({"depth": depth, "hidden_size": 32, "num_heads": 2, "vocab_size": 17,
                                      "max_length": 8, **options}))  # fmt: skip


class TestBlocks:
    def test_of_a_decoder_and_of_transformers(self) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

        small = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
        llama = LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=2))
        assert blocks_of(llama) == list(llama.model.layers)
        gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_positions=8))
        assert blocks_of(gpt2) == list(gpt2.transformer.h)
        ours = decoder()
        assert blocks_of(ours) == list(ours.layers)

    def test_of_a_plain_sequence_without_what_has_no_parameters(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4))
        assert blocks_of(network) == [network[0], network[2], network[4]]

    def test_a_network_without_a_stack_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"^Linear has no stack of layers to choose from$"):
            blocks_of(nn.Linear(2, 2))


class TestSuffixes:
    def test_every_parameter_is_in_one_layer(self) -> None:
        model = decoder()
        layers = suffixes(model)
        assert sorted(map(id, itertools.chain(*layers))) == sorted(map(id, model.parameters()))
        place = {id(p): index for index, layer in enumerate(layers) for p in layer}
        by_name = {name: place[id(p)] for name, p in model.named_parameters()}
        assert by_name["embedding.weight"] == 0
        assert {by_name[name] for name in by_name if name.startswith(("final_norm.", "head."))} == {2}
        assert {by_name[name] for name in by_name if name.startswith("layers.1.")} == {1}

    def test_a_tied_head_goes_with_the_embedding(self) -> None:
        model = decoder(head="tied")
        assert any(p is model.embedding.weight for p in suffixes(model)[0])

    def test_one_layer_has_all_and_what_is_frozen_is_left_out(self) -> None:
        model = decoder(depth=1)
        model.embedding.weight.requires_grad_(False)
        (only,) = suffixes(model)
        assert {id(p) for p in only} == {id(p) for p in model.parameters()} - {id(model.embedding.weight)}


class TestSwitch:
    def test_what_is_frozen_has_no_gradient_and_on_demand_no_state(self) -> None:
        layers = [[nn.Parameter(torch.ones(2))], [nn.Parameter(torch.ones(2))]]
        optimizer = torch.optim.AdamW([p for layer in layers for p in layer])
        for layer in layers:
            layer[0].grad = torch.ones(2)
        optimizer.step()
        Switch(layers)([0])
        assert (layers[1][0].requires_grad, layers[1][0].grad) == (False, None)
        assert layers[0][0].grad is not None
        assert layers[1][0] in optimizer.state
        Switch(layers, optimizer)([0])
        assert set(optimizer.state) == {layers[0][0]}
        Switch(layers, optimizer)([0, 1])
        assert layers[1][0].requires_grad

    def test_a_parameter_of_two_layers_is_trained_with_either(self) -> None:
        shared = nn.Parameter(torch.ones(1))
        switch = Switch([[shared], [shared], []])
        switch([1])
        assert shared.requires_grad
        switch([2])
        assert not shared.requires_grad


class TestDraw:
    def test_follows_from_its_key(self) -> None:
        weights = np.ones(20)
        assert draw(weights, 3, 5, 7) == draw(weights, 3, 5, 7)
        assert len({tuple(draw(weights, 3, seed, window)) for seed in range(5) for window in range(5)}) > 20

    def test_is_one_after_another_in_proportion_to_the_weights(self) -> None:
        """P{i, j} = p_i p_j (1 / (1 − p_i) + 1 / (1 − p_j)), within four standard errors."""
        weights, count = np.array([1.0, 2.0, 5.0, 8.0]), 4000
        found = Counter(tuple(draw(weights, 2, 0, window)) for window in range(count))
        p = weights / weights.sum()
        for i, j in itertools.combinations(range(4), 2):
            expected = p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j]))
            assert abs(found[i, j] / count - expected) < 4 * (expected * (1 - expected) / count) ** 0.5

    def test_weights_of_zero_come_last_and_alike(self) -> None:
        weights = np.array([0.0, 3.0, 0.0, 0.0])
        found = Counter(tuple(draw(weights, 2, 0, window)) for window in range(900))
        assert found.keys() == {(0, 1), (1, 2), (1, 3)}
        assert min(found.values()) > 240
        assert draw(np.zeros(3), 3, 0) == [0, 1, 2]
        assert draw(weights, 0, 0) == []
