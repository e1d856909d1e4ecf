from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from assay.errors import UserError
from assay.nn.attention.gated_attention import GatedAttention
from assay.nn.attention.gated_swinrmt import WindowRetention, balanced_slopes, log_decays
from assay.nn.attention.softmax import SoftmaxAttention
from assay.nn.mixer import mixers
from assay.nn.norm import norms
from assay.nn.position import Positions
from assay.nn.position.rotary import Rotary

HIDDEN, HEADS = 8, 2


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomized(module: Any, seed: int = 1) -> Any:
    module = module.double()
    for index, parameter in enumerate(module.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=seed + index) / 2)
    return module


def make(**options: Any) -> WindowRetention:
    return randomized(WindowRetention(HIDDEN, HEADS, **options))


def by_pixels(layer: WindowRetention, x: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """One image, one head and one pixel at a time, without windows as tensors.

    Along each side, pixels p and q share a window if ⌊(p − shift) / window⌋ is the same. Pairs of features are
    complex numbers, turned by the place in the window.
    """
    height, width, _ = x.shape
    dim = HIDDEN // HEADS
    value = layer.value(x)
    if layer.variant == "swat":
        gate = layer.value_gate(x)
        value = gate * gate.sigmoid() * value
    rates = torch.tensor([10000.0 ** -(j / (dim // 2 - 1)) for j in range(dim // 2)], dtype=torch.float64)

    def group(place: int, side: int) -> int:
        return (place - shift[side]) // window[side]

    def turn(features: Tensor, row: int, column: int) -> Tensor:
        place = (row - shift[0]) % window[0] * window[1] + (column - shift[1]) % window[1]
        return torch.view_as_complex(features.view(-1, 2)) * torch.polar(torch.ones(()).double(), place * rates)

    query, key = (
        [[[turn(m[r, c, h * dim : (h + 1) * dim], r, c) for h in range(HEADS)] for c in range(width)]
         for r in range(height)]
        for m in (layer.query(x), layer.key(x))
    )  # fmt: skip

    def weigh(q: Tensor, keys: list[Tensor], here: int, places: list[int], h: int) -> list[float]:
        decay = 1 - 2 ** (-layer.decay_start - layer.decay_range * h / HEADS)
        scores = [(q * k.conj()).real.sum().item() / math.sqrt(dim) for k in keys]
        if layer.variant == "swat":
            slope = (-1 if h < HEADS // 2 else 1) * 2.0 ** -(h % (HEADS // 2) + 1)
            return [
                decay ** abs(here - p) / (1 + math.exp(-s - slope * (here - p)))
                for s, p in zip(scores, places, strict=True)
            ]
        masses = [math.exp(s) * decay ** abs(here - p) for s, p in zip(scores, places, strict=True)]
        return [mass / sum(masses) for mass in masses]

    along_rows, mixed = torch.zeros_like(value), torch.zeros_like(value)
    for h in range(HEADS):
        head = slice(h * dim, (h + 1) * dim)
        for r in range(height):
            for c in range(width):
                near = [p for p in range(width) if group(p, 1) == group(c, 1)]
                weights = weigh(query[r][c][h], [key[r][p][h] for p in near], c, near, h)
                along_rows[r, c, head] = sum(w * value[r, p, head] for w, p in zip(weights, near, strict=True))
        for r in range(height):
            for c in range(width):
                near = [p for p in range(height) if group(p, 0) == group(r, 0)]
                weights = weigh(query[r][c][h], [key[p][c][h] for p in near], r, near, h)
                mixed[r, c, head] = sum(w * along_rows[p, c, head] for w, p in zip(weights, near, strict=True))
    return mixed + layer.local(value.movedim(-1, 0)).movedim(0, -1)


@pytest.mark.parametrize("variant", ["retention", "swat"])
@pytest.mark.parametrize(
    ("size", "window", "shifted", "effective", "shift"),
    [
        ((4, 4), 7, False, (4, 4), (0, 0)),
        ((4, 4), 4, True, (4, 4), (0, 0)),
        ((6, 4), 2, False, (2, 2), (0, 0)),
        ((6, 4), 2, True, (2, 2), (1, 1)),
        ((5, 7), 3, True, (3, 3), (1, 1)),
        ((3, 5), 3, True, (3, 3), (0, 1)),
        ((1, 5), 7, False, (1, 5), (0, 0)),
    ],
)
def test_is_the_definition_pixel_by_pixel(
    variant: Any,
    size: tuple[int, int],
    window: int,
    shifted: bool,
    effective: tuple[int, int],
    shift: tuple[int, int],
) -> None:
    layer, x = make(window=window, shifted=shifted, variant=variant), draw(2, *size, HIDDEN, seed=9)
    with torch.no_grad():
        found = layer(x)
        for image in range(2):
            y = by_pixels(layer, x[image], effective, shift)
            y = layer.norm(y) if variant == "swat" else layer.gate(x[image]).sigmoid() * y
            torch.testing.assert_close(found[image], layer.output(y), rtol=1e-5, atol=1e-6)


def test_worked_numbers_of_the_decay() -> None:
    decays = log_decays(4, 2.0, 4.0)
    torch.testing.assert_close(decays.exp(), torch.tensor([0.75, 0.875, 0.9375, 0.96875]))
    torch.testing.assert_close(decays, torch.tensor([-0.2877, -0.1335, -0.0645, -0.0317]), atol=5e-5, rtol=0)
    first = (decays[0] * torch.arange(3)).softmax(0)
    torch.testing.assert_close(first, torch.tensor([0.4324, 0.3243, 0.2432]), atol=5e-5, rtol=0)
    assert balanced_slopes(4).tolist() == [-0.5, -0.25, 0.5, 0.25]


def plain(layer: WindowRetention) -> WindowRetention:
    """Queries and keys of 0, values as they are, no local context, nothing after."""
    for linear in (layer.query, layer.key, layer.local):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    for linear in (layer.value, layer.output):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    return layer


def test_two_passes_are_one_softmax_over_manhattan_distances_where_scores_are_equal() -> None:
    layer, x = plain(make(gate=False)), draw(1, 4, 5, HIDDEN)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij")
    place = torch.stack((rows, columns), dim=-1).flatten(0, 1)
    distance = (place[:, None] - place).abs().sum(-1)
    for decay, found, given in zip(
        log_decays(HEADS, 2.0, 4.0).double(), layer(x).chunk(HEADS, dim=-1), x.chunk(HEADS, dim=-1), strict=True
    ):
        expected = (decay * distance).softmax(-1) @ given[0].flatten(0, 1)
        torch.testing.assert_close(found[0].flatten(0, 1), expected, rtol=1e-6, atol=1e-7)


def test_gate_of_zero_weights_halves_and_an_open_one_is_none() -> None:
    layer, x = make(), draw(2, 4, 4, HIDDEN)
    bare = make(gate=False)
    bare.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("gate")})
    for linear in (layer.output, bare.output):
        nn.init.zeros_(linear.bias)
    nn.init.zeros_(layer.gate.weight)
    nn.init.zeros_(layer.gate.bias)
    torch.testing.assert_close(layer(x), bare(x) / 2)
    nn.init.constant_(layer.gate.bias, torch.inf)
    torch.testing.assert_close(layer(x), bare(x))


def test_rows_sum_to_one_with_softmax_and_not_with_sigmoid() -> None:
    x = draw(1, 1, 1, 4, 4, HEADS, HIDDEN // HEADS)
    region = torch.zeros(1, 4, dtype=torch.long)
    sums = {v: make(variant=v).weights(x, x, region).sum(-1) for v in ("retention", "swat")}
    torch.testing.assert_close(sums["retention"], torch.ones_like(sums["retention"]))
    assert (sums["swat"] - 1).abs().min() > 1e-3


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("variant", ["retention", "swat"])
def test_a_pixel_reaches_its_window_and_no_further(variant: Any, shifted: bool) -> None:
    """6 × 6 pixels in windows of 3, with borders at 1 and 4 where shifted; the pixel at (0, 5) changes."""
    layer = make(window=3, shifted=shifted, variant=variant)
    nn.init.zeros_(layer.local.weight)
    x = draw(1, 6, 6, HIDDEN)
    changed = x.clone()
    changed[0, 0, 5] += 1
    moved = (layer(x) - layer(changed)).abs().amax(-1)[0] > 1e-9
    expected = torch.zeros(6, 6, dtype=torch.bool)
    if shifted:
        expected[:1, 4:] = True
    else:
        expected[:3, 3:] = True
    assert torch.equal(moved, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_heads": 3}, "num_heads=3 does not cut 8"), ({"num_heads": 8}, "of even size"),
     ({"num_heads": 1, "variant": "swat"}, "even number of heads, not num_heads=1")],
)  # fmt: skip
def test_wrong_numbers_of_heads(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WindowRetention(HIDDEN, **options)


def mixer(
    name: str = "gated-swinrmt", num_heads: int = 4, num_kv_heads: int = 2, head_dim: int = 6, **options: Any
) -> Any:
    built = mixers.build(
        name,
        options,
        hidden_size=HIDDEN,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        layer=0,
        norm=lambda size: norms.build("rms-norm", hidden_size=size),
    )
    return randomized(built)


def test_ends_as_the_image_of_one_row_does() -> None:
    """The last token sees what the last pixel of a row does. With two features a head, both turn them alike."""
    causal = mixer(num_heads=4, num_kv_heads=4, head_dim=2, qkv_bias=True, output_bias=True)
    image = randomized(WindowRetention(HIDDEN, 4), seed=30)
    for mine, other in (
        (causal.query, image.query),
        (causal.key, image.key),
        (causal.value, image.value),
        (causal.gate_projection, image.gate),
        (causal.output, image.output),
    ):
        mine.load_state_dict(other.state_dict())
    nn.init.zeros_(image.local.bias)
    for t, weight in enumerate(causal.local):
        weight.data.copy_(image.local.weight[:, 0, 2, 2 - t])
    x = draw(2, 6, HIDDEN, seed=5)
    rotation = Rotary(2).rotation(torch.arange(6)[None], torch.float64)
    found = causal(x, Positions(rotation))[:, -1]
    torch.testing.assert_close(found, image(x[:, None])[:, 0, -1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_without_decay_and_local_context_it_is_gated_or_plain_attention(gate: bool, num_kv_heads: int) -> None:
    ours = mixer(num_kv_heads=num_kv_heads, gate=gate, decay_start=60.0)
    for weight in ours.local:
        nn.init.zeros_(weight)
    theirs = mixer("gated-attention" if gate else "softmax", num_kv_heads=num_kv_heads)
    assert isinstance(theirs, GatedAttention if gate else SoftmaxAttention)
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if not k.startswith("local")})
    x = draw(2, 5, HIDDEN, seed=5)
    torch.testing.assert_close(ours(x, Positions()), theirs(x, Positions()))


def test_starts_without_local_context() -> None:
    built = mixers.build(
        "gated-swinrmt", hidden_size=8, num_heads=2, num_kv_heads=2, head_dim=4, layer=0, norm=nn.RMSNorm
    )
    assert [weight.tolist() for weight in built.local] == [[0.0] * 8] * 3


@pytest.mark.parametrize("gate", [False, True])
def test_is_the_causal_definition(gate: bool) -> None:
    layer, x = mixer(gate=gate), draw(1, 7, HIDDEN, seed=5)
    q, k, v = (m(x)[0].unflatten(-1, (-1, 6)) for m in (layer.query, layer.key, layer.value))
    result = torch.zeros(7, 24, dtype=torch.float64)
    for h in range(4):
        gamma = 1 - 2 ** -(2 + 4 * h / 4)
        for i in range(7):
            masses = torch.stack([(q[i, h] @ k[j, h // 2] / 6**0.5).exp() * gamma ** (i - j) for j in range(i + 1)])
            y = (masses / masses.sum()) @ v[: i + 1, h // 2]
            for t in range(min(i, 2) + 1):
                y = y + layer.local[t].view(2, 6)[h // 2] * v[i - t, h // 2]
            result[i, 6 * h : 6 * h + 6] = y
    if gate:
        result = result * layer.gate_projection(x)[0].sigmoid()
    torch.testing.assert_close(layer(x, Positions())[0], layer.output(result), rtol=1e-6, atol=1e-7)


def test_later_tokens_do_not_reach_earlier_ones() -> None:
    layer, x = mixer(), draw(1, 7, HIDDEN)
    changed = x.clone()
    changed[:, 4:] += 1
    y, again = layer(x, Positions()), layer(changed, Positions())
    torch.testing.assert_close(y[:, :4], again[:, :4])
    assert (y[:, 4:] - again[:, 4:]).abs().max() > 1e-3


def test_token_by_token_with_a_cache_is_the_whole_sequence_at_once() -> None:
    layer, x = mixer(), draw(2, 7, HIDDEN)
    cache, steps = DynamicCache(), []
    for first, last in ((0, 3), (3, 4), (4, 7)):
        seen = torch.ones(last, last, dtype=torch.bool).tril()[first:].expand(2, 1, -1, -1)
        steps.append(layer(x[:, first:last], Positions(mask=seen), cache))
    torch.testing.assert_close(torch.cat(steps, dim=1), layer(x, Positions()))


def test_padding_on_the_left_changes_nothing() -> None:
    layer, x = mixer(), draw(1, 7, HIDDEN)
    padded = torch.cat((draw(1, 2, HIDDEN, seed=3), x), dim=1)
    places = torch.arange(9)
    mask = (places <= places[:, None]) & (places >= 2) | (places == places[:, None])
    torch.testing.assert_close(layer(padded, Positions(mask=mask[None, None]))[:, 2:], layer(x, Positions()))


def test_weights_are_those_of_the_mixture() -> None:
    layer, x = mixer(), draw(1, 5, HIDDEN)
    for weight in layer.local:
        nn.init.zeros_(weight)
    query, key, value = layer.project(x, Positions())
    weights = layer.weights(x, query, key, None)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    expected = weights @ value.repeat_interleave(2, dim=1)
    torch.testing.assert_close(layer.mix(x, query, key, value, None), expected, rtol=1e-6, atol=1e-7)
