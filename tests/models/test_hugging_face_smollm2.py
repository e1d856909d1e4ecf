"""A released model: SmolLM2-135M through assay and through transformers."""

import inspect
import json

import pytest
import torch

from assay.models.hugging_face.model import AssayForCausalLM

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def text_ids(smollm2):
    ids = smollm2.tokenizer(inspect.getsource(json), return_tensors="pt").input_ids
    assert ids.shape[1] >= 512
    return ids[:, :512]


@torch.no_grad()
def test_logits_are_those_of_transformers(smollm2, text_ids):
    ours, theirs = smollm2.decoder(text_ids), smollm2.transformers(text_ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()


@torch.no_grad()
def test_greedy_text_is_that_of_transformers(smollm2, text_ids):
    prompt = text_ids[:, :24]
    options = {"max_new_tokens": 32, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    theirs = smollm2.transformers.generate(prompt, **options)
    ours = AssayForCausalLM.from_decoder(smollm2.decoder).generate(prompt, **options)
    assert ours.shape == (1, 56)
    assert ours.tolist() == theirs.tolist()
