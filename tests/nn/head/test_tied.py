from __future__ import annotations

import torch

from assay.nn.head import heads


def test_logits_are_agreements_with_the_embedding() -> None:
    head = heads.build("tied", hidden_size=4, vocab_size=7)
    assert not list(head.parameters())
    embedding, x = torch.randn(7, 4), torch.randn(2, 3, 4)
    logits = head(x, embedding)
    assert logits.shape == (2, 3, 7)
    for token in range(7):
        torch.testing.assert_close(logits[..., token], (x * embedding[token]).sum(-1))


def test_orthonormal_embeddings_are_read_back() -> None:
    head, embedding = heads.build("tied"), torch.eye(5)
    ids = torch.tensor([[3, 0, 4]])
    assert torch.equal(head(embedding[ids], embedding).argmax(-1), ids)


def test_embedding_gets_the_gradient_of_both_its_uses() -> None:
    embedding = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    towards, ids = torch.randn(2, 5, dtype=torch.float64), torch.tensor([1, 4])
    heads.build("tied")(embedding[ids], embedding).backward(towards)
    expected = towards.T @ embedding[ids]
    expected = expected.index_add(0, ids, towards @ embedding)
    torch.testing.assert_close(embedding.grad, expected)
