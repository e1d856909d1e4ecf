import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from assay.claims.experiments import experiments
from assay.claims.experiments import gradient_spectra as module


class Letters:
    def encode(self, text):
        return np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64)


def test_functions_have_documentation_of_their_own():
    found = dict(module.functions(["textwrap", "shutil"], words=30))
    assert list(found) == sorted(found)
    assert "textwrap.dedent" in found
    assert "shutil.copytree" in found
    assert all(len(text.split()) >= 30 for text in found.values())
    assert len(dict(module.functions())) >= 100


def test_ties_are_no_advantage():
    assert module.above(np.array([2.0, 1.0]), np.array([1.0, 0.0])) == 0.75


def test_answers_and_shuffled_ones_have_one_length(monkeypatch):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    )
    seen = []
    original = module.gradient_spectra

    def remember(network, samples):
        seen.append(samples)
        return original(network, samples)

    monkeypatch.setattr(module, "_smollm2", lambda: (model, Letters()))
    monkeypatch.setattr(module, "gradient_spectra", remember)
    found = experiments["gradient-spectra"](0, pairs=3, length=60)
    answers, shuffled = seen
    assert len(answers) == len(shuffled) == 3
    assert {len(one.ids) - one.start for one in answers + shuffled} == {60}
    for one, other in zip(answers, shuffled, strict=True):
        assert torch.equal(one.ids[: one.start], other.ids[: other.start])
        assert not torch.equal(one.ids, other.ids)
    assert 1 <= found["answers.rank"] <= 16
    assert found == experiments["gradient-spectra"](0, pairs=3, length=60)
