"""The decoder as a whole: what it may see, which placements and heads coincide, and how it starts."""

import itertools

import pytest
import torch
from torch import nn

from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.initialization import initialize
from assay.nn.mixer import mixers
from assay.nn.placement import placements
from assay.nn.position import positions

SIZES = {"depth": 4, "hidden_size": 32, "num_heads": 4, "vocab_size": 61, "max_length": 64}


def build(seed=0, **fields):
    """As training builds it."""
    config = ModelConfig.parse({**SIZES, **fields})
    decoder = Decoder(config).eval()
    initialize(decoder, seed, config.init_std)
    return decoder


def copy(source, target):
    """Give ``target`` the parameters of ``source``, which must have the same names and shapes."""
    target.load_state_dict(source.state_dict())
    return target


def error(**fields):
    with pytest.raises(UserError) as caught:
        ModelConfig.parse({**SIZES, **fields})
    return str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize(
    ("mixer", "placement", "position"), list(itertools.product(mixers.names(), placements.names(), positions.names()))
)
def test_no_token_sees_a_later_one(make_decoder, ids, mixer, placement, position):
    decoder = make_decoder(mixer=mixer, placement=placement, position=position)
    logits = decoder(ids)
    for place in (1, 11, 19):
        changed = ids.clone()
        changed[:, place:] = (changed[:, place:] + 1) % 61
        again = decoder(changed)
        assert torch.equal(again[:, :place], logits[:, :place])
        assert not torch.equal(again[:, place], logits[:, place])


@torch.no_grad()
@pytest.mark.parametrize("mixer", mixers.names())
def test_an_earlier_token_is_seen(make_decoder, ids, mixer):
    decoder = make_decoder(mixer=mixer)
    changed = ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 61
    assert (decoder(changed)[:, -1] != decoder(ids)[:, -1]).any()


@torch.no_grad()
def test_order_matters_only_with_positions(make_decoder, ids):
    """Without positions and with one layer, the last token sees a set of earlier ones."""
    shuffled = torch.cat((ids[:, :-1].flip(1), ids[:, -1:]), dim=1)
    for position in positions.names():
        decoder = make_decoder(depth=1, position=position)
        alike = torch.allclose(decoder(shuffled)[:, -1], decoder(ids)[:, -1], atol=1e-5)
        assert alike == (position == "none")


class TestPlacements:
    @torch.no_grad()
    def test_mix_ln_without_a_post_share_is_pre_ln(self, make_decoder, ids):
        mixed = make_decoder(depth=4, placement={"name": "mix-ln", "post_share": 0.0})
        plain = copy(mixed, make_decoder(depth=4, placement="pre-ln"))
        assert torch.equal(mixed(ids), plain(ids))

    @torch.no_grad()
    def test_mix_ln_of_post_alone_is_post_ln_and_a_final_norm(self, make_decoder, ids):
        mixed = make_decoder(depth=4, placement={"name": "mix-ln", "post_share": 1.0})
        post = make_decoder(depth=4, placement="post-ln")
        assert set(mixed.state_dict()) - set(post.state_dict()) == {"final_norm.weight"}
        post.load_state_dict({name: mixed.state_dict()[name] for name in post.state_dict()})
        expected = post.head(mixed.final_norm(post.hidden(ids)), post.embedding.weight)
        assert torch.equal(mixed(ids), expected)

    @torch.no_grad()
    def test_mix_ln_switches_after_its_share(self, make_decoder):
        mixed = make_decoder(depth=8, placement={"name": "mix-ln", "post_share": 0.25})
        kinds = ["post" if layer.mixer.stream_norm is not None else "pre" for layer in mixed.layers]
        assert kinds == ["post"] * 2 + ["pre"] * 6

    @torch.no_grad()
    def test_layernorm_scaling_is_pre_ln_with_smaller_gains(self, make_decoder, ids):
        scaled = make_decoder(depth=4, placement="layernorm-scaling")
        plain = copy(scaled, make_decoder(depth=4, placement="pre-ln"))
        assert not torch.allclose(plain(ids), scaled(ids), atol=1e-2)
        for number, layer in enumerate(plain.layers, start=1):
            layer.mixer.input_norm.weight /= number**0.5
            layer.mlp.input_norm.weight /= number**0.5
        torch.testing.assert_close(plain(ids), scaled(ids), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_peri_ln_writes_vectors_of_rms_one(self, make_decoder, ids):
        decoder = make_decoder(placement="peri-ln")
        written = []
        for layer in decoder.layers:
            for sublayer in (layer.mixer, layer.mlp):
                nn.init.ones_(sublayer.output_norm.weight)
                sublayer.output_norm.register_forward_hook(lambda *call: written.append(call[-1]))
        states = []
        decoder.final_norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        decoder(ids)
        assert len(written) == 4
        for y in written:
            torch.testing.assert_close(y.square().mean(-1).sqrt(), torch.ones(ids.shape), atol=1e-3, rtol=0)
        torch.testing.assert_close(states[0], decoder.embedding(ids) + sum(written))

    @torch.no_grad()
    def test_peri_ln_may_norm_the_embedding(self, make_decoder, ids):
        decoder = make_decoder(placement={"name": "peri-ln", "embedding_norm": True})
        starts = []
        decoder.layers[0].mixer.input_norm.register_forward_pre_hook(lambda _, x: starts.append(x[0]))
        decoder(ids)
        torch.testing.assert_close(starts[0], decoder.embedding_norm(decoder.embedding(ids)))


@torch.no_grad()
def test_gates_of_zero_weight_halve_softmax_attention(make_decoder, ids):
    """σ(0) = ½, and halving is exact in floating point, whatever stands before the linear output."""
    gated = make_decoder(mixer="gated-attention")
    plain = make_decoder(mixer="softmax")
    plain.load_state_dict({name: gated.state_dict()[name] for name in plain.state_dict()})
    for ours, theirs in zip(gated.layers, plain.layers, strict=True):
        nn.init.zeros_(ours.mixer.branch.gate_projection.weight)
        theirs.mixer.branch.output.weight /= 2
    assert torch.equal(gated(ids), plain(ids))


class TestHeads:
    @torch.no_grad()
    def test_an_untied_head_with_the_embedding_is_a_tied_one(self, make_decoder, ids):
        tied = make_decoder(head="tied")
        untied = make_decoder(head="untied")
        untied.load_state_dict({**tied.state_dict(), "head.projection.weight": tied.embedding.weight})
        assert torch.equal(untied(ids), tied(ids))

    def test_a_tied_head_adds_its_gradient_to_the_embedding(self, make_decoder, ids):
        tied = make_decoder(head="tied")
        untied = make_decoder(head="untied")
        untied.load_state_dict({**tied.state_dict(), "head.projection.weight": tied.embedding.weight})
        for decoder in (tied, untied):
            decoder(ids).square().mean().backward()
        both = untied.embedding.weight.grad + untied.head.projection.weight.grad
        torch.testing.assert_close(tied.embedding.weight.grad, both)


class TestPatterns:
    def test_mixers_take_turns(self, make_decoder):
        decoder = make_decoder(depth=7, mixer=["gated-attention*2", "softmax"])
        gated = ["gate_projection" in dict(layer.mixer.branch.named_children()) for layer in decoder.layers]
        assert gated == [True, True, False, True, True, False, True]

    def test_options_belong_to_their_component(self, make_decoder):
        decoder = make_decoder(depth=2, mixer=["softmax", {"name": "softmax", "qkv_bias": True}])
        assert [layer.mixer.branch.query.bias is not None for layer in decoder.layers] == [False, True]

    @torch.no_grad()
    def test_a_pattern_of_one_is_that_one(self, make_decoder, ids):
        repeated = make_decoder(mixer=["softmax", "softmax*3"])
        assert torch.equal(repeated(ids), copy(repeated, make_decoder(mixer="softmax"))(ids))

    def test_mlps_take_turns(self, make_decoder):
        decoder = make_decoder(depth=3, mlp=["swiglu", "relu2"])
        assert [type(layer.mlp.branch).__name__ for layer in decoder.layers] == ["SwiGLU", "ReLU2", "SwiGLU"]


class TestInitialization:
    ARMS = (
        {},
        {"norm": "seednorm"},
        {"mixer": "gated-attention"},
        {"placement": "peri-ln"},
        {"head": "tied"},
        {"position": "learned"},
        {"residual": {"name": "scaled", "learned": True}},
        {"mixer": {"name": "softmax", "qkv_bias": True}, "norm": "layer-norm"},
        {"depth": 6},
    )

    @pytest.mark.parametrize("fields", ARMS[1:])
    def test_arms_share_what_they_have_in_common(self, fields):
        baseline, arm = build().state_dict(), build(**fields).state_dict()
        common = baseline.keys() & arm.keys()
        assert len(common) >= len(baseline) - 9
        assert all(torch.equal(baseline[name], arm[name]) for name in common)

    def test_seeds_differ(self):
        first, again, other = (build(seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[name], again[name]) for name in first)
        drawn = [name for name in first if first[name].ndim == 2]
        assert len(drawn) == 4 * 7 + 2
        assert not any(torch.equal(first[name], other[name]) for name in drawn)

    def test_parameters_differ_from_one_another(self):
        state = build().state_dict()
        queries = [state[f"layers.{i}.mixer.branch.query.weight"] for i in range(4)]
        assert all(not torch.equal(a, b) for a, b in itertools.combinations(queries, 2))
        assert not torch.equal(state["layers.0.mixer.branch.query.weight"], state["layers.0.mixer.branch.key.weight"])

    def test_the_global_generator_is_left_alone_and_has_no_say(self):
        torch.manual_seed(0)
        first = build()
        torch.manual_seed(1)
        before = torch.get_rng_state()
        initialize(first, 0, 0.02)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(build().embedding.weight, first.embedding.weight)

    def test_distribution(self):
        decoder = build(hidden_size=256, init_std=0.05, mixer={"name": "softmax", "qkv_bias": True})
        weight = decoder.layers[0].mlp.branch.up.weight.detach()
        n = weight.numel()
        assert abs(weight.mean().item()) < 5 * 0.05 / n**0.5
        assert abs(weight.std().item() / 0.05 - 1) < 5 / (2 * n) ** 0.5
        assert not decoder.layers[0].mixer.branch.query.bias.any()
        assert torch.equal(decoder.final_norm.weight, torch.ones(256))


class TestConfig:
    @pytest.mark.parametrize(
        ("depth", "hidden", "heads", "intermediate"), [(1, 64, 1, 168), (4, 256, 4, 680), (12, 768, 12, 2048)]
    )
    def test_depth_is_one_dial(self, depth, hidden, heads, intermediate):
        config = ModelConfig(depth=depth)
        assert (config.hidden_size, config.num_heads, config.num_kv_heads) == (hidden, heads, heads)
        assert (config.head_dim, config.intermediate_size) == (64, intermediate)

    def test_what_is_given_stays(self):
        config = ModelConfig(depth=12, hidden_size=96, head_dim=16, num_kv_heads=2, intermediate_size=100)
        assert (config.hidden_size, config.num_heads, config.num_kv_heads) == (96, 6, 2)
        assert (config.head_dim, config.intermediate_size) == (16, 100)
        assert ModelConfig(depth=12, mlp="gelu").intermediate_size == 4 * 768

    def test_what_is_derived_survives_a_dump(self):
        config = ModelConfig(depth=3, mixer=["softmax*2", {"name": "gated-attention", "granularity": "headwise"}])
        assert ModelConfig.parse(config.dump()) == config

    def test_the_learning_rate_falls_with_the_width(self):
        assert ModelConfig(depth=12).learning_rate() == pytest.approx(6e-4)
        assert ModelConfig(depth=3).learning_rate() == pytest.approx(12e-4)

    def test_it_needs_a_vocabulary_and_a_length(self):
        with pytest.raises(UserError, match=r"model\.vocab_size and model\.max_length"):
            Decoder(ModelConfig(depth=1))

    @pytest.mark.parametrize(
        ("slot", "wrong", "nearest"),
        [
            ("norm", "rms-nrom", "rms-norm"),
            ("mixer", "sofmax", "softmax"),
            ("mixer", ["softmax", "gated-atention*2"], "gated-attention"),
            ("mlp", "swigl", "swiglu"),
            ("placement", "peri", "peri-ln"),
            ("position", "rotery", "rotary"),
            ("residual", "scale", "scaled"),
            ("head", "tide", "tied"),
        ],
    )
    def test_unknown_names_are_answered_with_the_nearest(self, slot, wrong, nearest):
        line = error(**{slot: wrong})
        assert line.startswith(f"{slot}: unknown {slot} ")
        assert f"nearest: {nearest}" in line

    def test_unknown_fields_too(self):
        assert error(hiden_size=32).startswith("unknown field 'hiden_size'; nearest: hidden_size")

    def test_options(self):
        assert "has no option 'epsilon'" in error(norm={"name": "seednorm", "epsilon": 1e-5})
        assert "qk_norm='perhaps'" in error(mixer={"name": "softmax", "qk_norm": "perhaps"})
        assert "granularity='rowwise'" in error(mixer={"name": "gated-attention", "granularity": "rowwise"})
        assert "a norm is a name" in error(norm=3)
        assert "at least one" in error(mixer=[])

    @pytest.mark.parametrize("field", ["depth", "hidden_size", "num_heads", "max_length", "init_std"])
    @pytest.mark.parametrize("value", [0, -1, "many"])
    def test_sizes_are_positive_numbers(self, field, value):
        assert error(**{field: value}).startswith(f"{field}={value!r}: input should be ")

    def test_heads_that_do_not_divide(self):
        assert "num_heads=5 does not divide hidden_size=32; 4 does" in error(num_heads=5)
        assert "num_kv_heads=3 does not divide num_heads=4" in error(num_kv_heads=3)

    def test_components_check_sizes_when_they_are_built(self):
        for fields, named in [
            ({"norm": {"name": "seednorm", "num_heads": 5}}, "num_heads=5 does not divide 32"),
            ({"head_dim": 7}, "even head dimension, not 7"),
            ({"placement": {"name": "mix-ln", "post_share": 1.5}}, r"post_share=1.5 is outside \[0, 1\]"),
        ]:
            with pytest.raises(UserError, match=named):
                Decoder(ModelConfig.parse({**SIZES, **fields}))
