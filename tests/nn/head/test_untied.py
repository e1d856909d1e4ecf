from __future__ import annotations

import torch

from assay.nn.head import heads


def test_has_a_matrix_of_its_own_and_ignores_the_embedding() -> None:
    head = heads.build("untied", hidden_size=4, vocab_size=7)
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {"projection.weight": (7, 4)}
    x, embedding = torch.randn(2, 3, 4), torch.randn(7, 4, requires_grad=True)
    logits = head(x, embedding)
    torch.testing.assert_close(logits, x @ head.projection.weight.T)
    assert torch.equal(logits, head(x, torch.zeros(7, 4)))
    logits.sum().backward()
    assert embedding.grad is None


def test_with_the_embedding_copied_in_it_is_the_tied_head() -> None:
    head, embedding, x = heads.build("untied", hidden_size=4, vocab_size=7), torch.randn(7, 4), torch.randn(2, 4)
    head.projection.weight.data.copy_(embedding)
    assert torch.equal(head(x, embedding), heads.build("tied")(x, embedding))


def test_a_bias_is_added_to_each_logit() -> None:
    head = heads.build("untied", {"bias": True}, hidden_size=4, vocab_size=7)
    x, bias = torch.randn(2, 3, 4), torch.randn(7)
    head.projection.bias.data.copy_(bias)
    torch.testing.assert_close(head(x, torch.zeros(7, 4)), x @ head.projection.weight.T + bias)
