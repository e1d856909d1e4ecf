"""What diagnostics hear, against what transformers itself gives out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from assay.diagnostics import diagnostics
from assay.diagnostics.attention_weights import attend
from assay.diagnostics.events import Attention, LayerStep
from assay.diagnostics.observing import observe
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows
from assay.errors import UserError
from assay.models import Decoder, ModelConfig

Released = Callable[..., Any]


def heard(subject: Subject, ids: torch.Tensor) -> tuple[list[Attention], list[LayerStep], torch.Tensor]:
    attentions: list[Attention] = []
    steps: list[LayerStep] = []
    with torch.no_grad(), subject.listening(attention=attentions.append, layer=steps.append):
        logits = subject.logits(ids)
    return attentions, steps, logits


def test_attention_is_that_of_output_attentions(architecture: str, windows: Windows, released: Released) -> None:
    model = released(architecture)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(windows.ids, output_attentions=True, use_cache=False)
    attentions, _, logits = heard(Subject(model), windows.ids)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert [one.layer for one in attentions] == [0, 1, 2, 3]
    time = windows.ids.shape[1]
    for one, weights in zip(attentions, expected.attentions, strict=True):
        torch.testing.assert_close(one.entropy, torch.special.entr(weights).sum(-1), atol=1e-4, rtol=1e-3)
        seen = weights.sum(-2) / torch.arange(time, 0, -1)
        torch.testing.assert_close(one.received, seen, atol=1e-5, rtol=1e-4)
    assert model.config._attn_implementation == "eager"


def test_layers_are_those_of_output_hidden_states(architecture: str, windows: Windows, released: Released) -> None:
    model = released(architecture)
    with torch.no_grad():
        expected = model(windows.ids, output_hidden_states=True, use_cache=False).hidden_states
    _, steps, _ = heard(Subject(model), windows.ids)
    for step, before, after in zip(steps[:-1], expected[:-2], expected[1:-1], strict=True):
        torch.testing.assert_close(step.before, before, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(step.after, after, atol=1e-4, rtol=1e-4)


def test_attention_and_mlp_add_up_to_the_update(architecture: str, windows: Windows, released: Released) -> None:
    model = released(architecture)
    subject = Subject(model)
    outputs: dict[int, torch.Tensor] = {}
    for layer in subject.layers:
        assert layer.attention is not None

        def keep(module: Any, inputs: Any, output: Any, index: int = layer.index) -> None:
            outputs[index] = output[0]

        layer.attention.register_forward_hook(keep)
    _, steps, _ = heard(subject, windows.ids)
    for step in steps:
        assert step.attention is not None
        assert step.mlp is not None
        torch.testing.assert_close(step.attention + step.mlp, step.update, atol=1e-4, rtol=1e-4)
        if architecture not in ("gemma2", "olmo2"):  # they norm the attention's output before they add it
            torch.testing.assert_close(step.attention, outputs[step.layer], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("mixer", "rows"), [("softmax", 40), ("gated-attention", 40), ("affine-scaled-attention", 39)]
)
def test_a_decoder_of_assay_is_heard_without_changing_it(mixer: str, rows: int, windows: Windows) -> None:
    """Each row of weights sums to one; affine scaling leaves the first without any."""
    torch.manual_seed(0)
    sizes = {"depth": 3, "hidden_size": 32, "num_heads": 4, "vocab_size": 300, "max_length": 64, "mixer": mixer}
    decoder = Decoder(ModelConfig.parse(sizes)).eval()
    with torch.no_grad():
        expected = decoder(windows.ids)
    attentions, steps, logits = heard(Subject(decoder), windows.ids)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert len(attentions) == len(steps) == 3
    states = decoder.begin(windows.ids)[0]
    torch.testing.assert_close(steps[0].before, states)
    for one in attentions:
        per_query = one.received * torch.arange(40, 0, -1)
        torch.testing.assert_close(per_query.sum(-1), torch.full((4, 4), float(rows)), atol=1e-3, rtol=1e-4)


def test_uniform_attention_by_hand() -> None:
    """Equal queries: query i has entropy ln(i + 1), and key j gets the mean of 1/(i + 1) over i ≥ j."""
    time = 6
    query = torch.zeros(1, 2, time, 4)
    key, value = torch.randn(1, 1, time, 4), torch.randn(1, 1, time, 4)
    found = attend(0, "", query, key, value, scale=0.5)
    torch.testing.assert_close(found.entropy[0, 0], torch.arange(1, time + 1).float().log(), atol=1e-5, rtol=1e-5)
    shares = torch.tensor([sum(1 / (i + 1) for i in range(j, time)) / (time - j) for j in range(time)])
    torch.testing.assert_close(found.received[0, 1], shares)
    torch.testing.assert_close(found.output[0, 0, -1], value[0, 0].mean(0))
    assert found.largest_logit.tolist() == [[0.0, 0.0]]


def test_blocks_of_heads_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 9, 4), torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 4)
    whole = attend(0, "", query, key, value, scale=1.0, softcap=2.0, sinks=torch.randn(6))
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 9, 4), torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 4)
    sinks = torch.randn(6)
    monkeypatch.setattr("assay.diagnostics.attention_weights.BLOCK", 1)
    one_by_one = attend(0, "", query, key, value, scale=1.0, softcap=2.0, sinks=sinks)
    seen = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    masked = attend(0, "", query, key, value, scale=1.0, softcap=2.0, sinks=sinks, mask=seen)
    for name in ("largest_logit", "entropy", "received", "value_norm", "output"):
        torch.testing.assert_close(getattr(whole, name), getattr(one_by_one, name))
        torch.testing.assert_close(getattr(whole, name), getattr(masked, name))
    assert (whole.entropy >= 0).all()


def test_sinks_take_their_share_of_the_weights() -> None:
    """A sink of logit s beside one key of logit 0: the key's weight is 1 / (1 + e^s)."""
    query, key, value = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    found = attend(0, "", query, key, value, scale=1.0, sinks=torch.tensor([1.0]))
    assert found.received.item() == pytest.approx(1 / (1 + math.e))


def test_nothing_is_left_behind(llama: Subject, windows: Windows) -> None:
    """Neither hooks nor the attention function stay, even if a listener fails."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules())
    implementation = llama.model.config._attn_implementation

    def fail(event: Any) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), llama.listening(attention=fail, layer=fail, neurons=fail):
        llama.logits(windows.ids)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules()) == hooks
    assert llama.model.config._attn_implementation == implementation


def test_only_what_is_listened_to_is_made(llama: Subject, windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.diagnostics.attention_weights.attend", lambda *a, **k: pytest.fail("not asked for"))
    one = diagnostics.build("residual-norms", subject=llama)
    observe(llama, windows, [one])
    assert one.result() is not None


def test_batches_do_not_mix_domains(windows: Windows) -> None:
    assert [batch.domains for batch in windows.batches()] == [("one", "one"), ("two", "two")]


class TestWindows:
    def test_spread_evenly_each_behind_a_separator(self) -> None:
        found = Windows.of({"a": range(100, 200), "b": range(200, 230)}, separator=7, length=10, tokens=60)
        assert found.domains == ("a", "a", "a", "b", "b", "b")
        assert found.ids[:, 0].tolist() == [7] * 6
        assert found.ids[:, 1].tolist() == [100, 133, 166, 200, 210, 220]

    def test_a_text_shorter_than_a_window(self) -> None:
        with pytest.raises(UserError, match="a: 5 tokens, fewer than one window of 10"):
            Windows.of({"a": range(5)}, separator=0, length=10, tokens=10)
