"""The accelerated stream: what it leaves alone, what it starts as, and what it is trained towards."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.accelerated_stream import AcceleratedStream


@pytest.fixture
def decoder(make_decoder):
    return make_decoder(depth=4, num_kv_heads=2).double()


def build(decoder, *, trained=True, **options):
    """With adapters as they start, or as if they had been trained."""
    stream = AcceleratedStream(decoder, **{"exit_layer": 2, "rate": 2, "rank": 3, **options}).double()
    generator = torch.Generator().manual_seed(5)
    for parameter in stream.adapters.parameters():
        if trained:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return stream


@torch.no_grad()
def test_the_decoder_gives_the_same_bits_beside_it(decoder, ids):
    expected, cache = decoder(ids), DynamicCache()
    stream = build(decoder)
    assert torch.equal(stream.logits(stream(ids).slow[-1]), expected)
    assert torch.equal(stream.logits(stream(ids, cache=cache).slow[-1]), expected)
    assert torch.equal(decoder(ids), expected)


@torch.no_grad()
def test_untrained_it_is_the_decoder_stopped_early(decoder, ids):
    streams = build(decoder, trained=False)(ids)
    assert len(streams.slow) == 5
    assert len(streams.fast) == 3
    for slow, fast in zip(streams.slow, streams.fast, strict=False):
        assert torch.equal(slow, fast)


@torch.no_grad()
def test_without_branches_only_the_adapters_move_it(decoder, ids):
    for layer in decoder.layers:
        nn.init.zeros_(layer.mixer.branch.output.weight)
        nn.init.zeros_(layer.mlp.branch.down.weight)
    stream = build(decoder)
    p = decoder.embedding(ids)
    for adapter in stream.adapters:
        normed = nn.functional.rms_norm(p, (32,), eps=1e-6)
        hidden = normed @ adapter.down.weight.T
        p = p + (hidden * hidden.sigmoid()) @ adapter.up.weight.T
    streams = stream(ids)
    torch.testing.assert_close(streams.fast[-1], p)
    assert all(torch.equal(slow, decoder.embedding(ids)) for slow in streams.slow)


@torch.no_grad()
def test_it_attends_to_the_slow_streams_keys_and_values(make_decoder, ids):
    """With one query head and no rotation, attention is written out: q of p against k and v of h."""
    decoder = make_decoder(depth=2, num_heads=1, position="none").double()
    stream = build(decoder, exit_layer=2, rate=1)
    streams = stream(ids)
    h, p = streams.slow[1], streams.fast[1]
    assert not torch.allclose(h, p)
    layer = decoder.layers[1]
    attention, norm = layer.mixer.branch, layer.mixer.input_norm
    scores = attention.query(norm(p)) @ attention.key(norm(h)).mT / 32**0.5
    scores = scores.masked_fill(torch.ones(20, 20, dtype=torch.bool).triu(1), float("-inf"))
    moved = p + attention.output(scores.softmax(-1) @ attention.value(norm(h)))
    moved = moved + layer.mlp.branch(layer.mlp.input_norm(moved)) + stream.adapters[1](p)
    torch.testing.assert_close(streams.fast[2], moved)


@torch.no_grad()
def test_a_cache_holds_the_decoders_entries_and_no_more(decoder, ids):
    stream, ours, theirs = build(decoder), DynamicCache(), DynamicCache()
    whole, pieces = stream(ids), []
    for place in range(ids.shape[1]):
        step = {
            "position_ids": torch.tensor([[place]]),
            "mask": torch.ones(1, 1, 1, place + 1, dtype=torch.bool),
        }
        pieces.append(stream(ids[:, place : place + 1], cache=ours, **step).fast[-1])
        decoder(ids[:, place : place + 1], cache=theirs, **step)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole.fast[-1], rtol=1e-9, atol=1e-9)
    for layer in range(4):
        assert torch.equal(ours.layers[layer].keys, theirs.layers[layer].keys)
        assert torch.equal(ours.layers[layer].values, theirs.layers[layer].values)


@torch.no_grad()
def test_the_loss_is_alignment_at_the_rate_and_divergence_at_the_exit(decoder, ids):
    stream = build(decoder)
    slow, fast = stream(ids)
    expected = torch.zeros((), dtype=torch.float64)
    for p, h in ((fast[1], slow[2]), (fast[2], slow[4])):
        expected += ((p - h).norm(dim=-1) / h.norm(dim=-1)).square().mean()
    final, ahead = (stream.logits(x).softmax(-1) for x in (slow[4], fast[2]))
    expected += (final * (final.log() - ahead.log())).sum(-1).mean()
    torch.testing.assert_close(stream.loss(stream(ids)), expected)


@torch.no_grad()
def test_at_rate_one_there_is_nothing_to_align(decoder, ids):
    """And at the last layer nothing to learn at all."""

    def untrained_loss(**options):
        stream = build(decoder, trained=False, **options)
        return stream.loss(stream(ids))

    assert untrained_loss(exit_layer=4, rate=1).abs() < 1e-12
    assert untrained_loss(exit_layer=2, rate=2) > 0.1


def test_only_adapters_are_trained_and_they_learn(decoder, ids):
    stream = build(decoder, trained=False, rank=8)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    trained = [parameter for parameter in stream.parameters() if parameter.requires_grad]
    assert trained == list(stream.adapters.parameters())
    assert sum(parameter.numel() for parameter in trained) == 2 * 2 * 32 * 8
    optimizer, losses = torch.optim.Adam(trained, lr=1e-2), []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(stream.loss(stream(ids)))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is None for parameter in decoder.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())


@torch.no_grad()
def test_an_exit_runs_no_layer_beyond_it(decoder, ids):
    stream = build(decoder)
    expected = stream.logits(stream(ids).fast[-1])

    def refuse(*call):
        raise AssertionError("a layer beyond the exit was run")

    handles = [layer.register_forward_pre_hook(refuse) for layer in decoder.layers[2:]]
    assert torch.equal(stream.exit(ids), expected)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_a_threshold_chooses_who_exits(decoder, ids):
    stream = build(decoder)
    final, ahead = decoder(ids), stream.exit(ids)
    confidence = ahead.softmax(-1).amax(-1)
    for threshold in (0.0, float(confidence.median()), 1.1):
        logits, exits = stream.early(ids, threshold=threshold)
        assert torch.equal(exits, confidence >= threshold)
        assert torch.equal(logits[exits], ahead[exits])
        assert torch.equal(logits[~exits], final[~exits])
    assert not exits.any()


def test_what_cannot_be_accelerated(make_decoder, ids):
    decoder = make_decoder(depth=4)
    line = r"exit_layer=\d at rate=\d reads ahead to layer \d of a decoder of depth 4"
    for options in ({"exit_layer": 3}, {"exit_layer": 0}, {"rate": 0}, {"rate": 3}):
        with pytest.raises(UserError, match=line):
            build(decoder, **options)
    with pytest.raises(UserError, match="rank=0"):
        build(decoder, rank=0)
    config = {"depth": 2, "hidden_size": 32, "num_heads": 4, "vocab_size": 61, "max_length": 64}
    mixed = Decoder(ModelConfig.parse({**config, "residual": "attention-residuals"}))
    with pytest.raises(UserError, match="one tensor, not 'attention-residuals'"):
        AcceleratedStream(mixed, exit_layer=1, rate=2)(ids)
