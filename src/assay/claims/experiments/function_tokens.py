"""Function tokens of Python's own manual: their share of the loss of a small model, and of its features.

The text is the 79 topics of Python's built-in help, cut into byte pairs; a transformer in the form of Llama learns
three quarters of them and is looked at on the rest.

Zhang, Lin, Li, 2025, arXiv:2510.08203.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from assay.analysis.function_tokens import (
    class_losses,
    count_tokens,
    equal_degrees,
    feature_graph,
    function_tokens,
    observe,
)
from assay.analysis.function_tokens.autoencoder import fit_encoder
from assay.claims.experiments import experiments


@experiments.register("function-tokens")
def function_token_losses(
    seed: int,
    *,
    steps: int = 240,
    early: int = 36,
    batch_size: int = 8,
    length: int = 96,
    vocab_size: int = 1024,
    hidden_size: int = 128,
    features: int = 1024,
    tokens: int = 24_000,
    occurrences: int = 16,
    lr: float = 2e-3,
) -> dict[str, float]:
    """``A_B``: loss in nats of a token of class B behind one of class A, on text that training had not.

    ``A_B.excess`` is that above the loss of predicting from frequency alone. ``learned.B`` is the share of the fall
    of the loss on tokens of class B that ``early`` of all steps reach. ``coverage`` is the share of features that the
    ten most frequent tokens switch on, of a TopK autoencoder of the middle layer; ``degree.A`` the mean number of
    features of a token of class A at ``occurrences`` occurrences each.
    """
    texts = topics(seed)
    documents = byte_pairs(texts, vocab_size)
    held_out, training = documents[: len(texts) // 4], documents[len(texts) // 4 :]
    counts = count_tokens(documents)
    function = function_tokens(counts)
    model = small_model(seed, vocab_size, hidden_size=hidden_size, length=length)
    look = {"separator": vocab_size - 1, "tokens": tokens, "length": length - 1}

    def by_target() -> tuple[float, float]:
        seen = observe(model, held_out, **(look | {"tokens": tokens // 4}))
        known = torch.isin(seen.targets, torch.from_numpy(function))
        return seen.loss[known].mean().item(), seen.loss[~known].mean().item()

    stream = np.concatenate([np.append(vocab_size - 1, document) for document in training])
    start = by_target()
    optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.95))
    batches = windows(stream, seed, steps, batch_size, length)
    train(model, batches[:early], optimizer)
    middle = by_target()
    train(model, batches[early:], optimizer)
    end = by_target()
    seen = observe(model, held_out, **look, layer=1)
    assert seen.states is not None
    encoder, _ = fit_encoder(seen.states, features=features, seed=seed)
    degrees = equal_degrees(seen.inputs, seen.states, encoder, function, occurrences=occurrences, seed=seed)
    groups = class_losses(seen, counts, function)
    return (
        {f"{group.current}_{group.following}": group.loss for group in groups}
        | {f"{group.current}_{group.following}.excess": group.loss - group.frequency_loss for group in groups}
        | {
            f"learned.{kind}": (first - between) / (first - last)
            for kind, first, between, last in zip(("function", "content"), start, middle, end, strict=True)
        }
        | {"degree.function": degrees[0], "degree.content": degrees[1]}
        | {"coverage": feature_graph(seen.inputs, seen.states, encoder).coverage[9].item()}
    )


def topics(seed: int) -> list[str]:
    """The texts of Python's built-in help, in an order of the seed's."""
    from pydoc_data.topics import topics as texts

    names = sorted(texts)
    return [texts[names[place]] for place in np.random.default_rng(seed).permutation(len(names))]


def byte_pairs(texts: list[str], vocab_size: int) -> list[Integer[np.ndarray, " length"]]:
    """Ids of ``texts``, of byte pairs learned on them; the last id is left for a separator."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return [np.asarray(encoded.ids, np.int64) for encoded in backend.encode_batch(texts)]


def small_model(seed: int, vocab_size: int, *, hidden_size: int, length: int, depth: int = 4) -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=hidden_size,
                intermediate_size=3 * hidden_size,
                num_hidden_layers=depth,
                num_attention_heads=4,
                max_position_embeddings=length,
                tie_word_embeddings=True,
            )
        ).eval()


def windows(
    stream: Integer[np.ndarray, " tokens"], seed: int, steps: int, batch_size: int, length: int
) -> Int[Tensor, "steps batch length"]:
    """Pieces of a stream at random places."""
    places = np.random.default_rng([seed, 1]).integers(0, len(stream) - length, (steps, batch_size, 1))
    return torch.from_numpy(stream[places + np.arange(length)])


def train(
    model: LlamaForCausalLM, batches: Int[Tensor, "steps batch length"], optimizer: torch.optim.Optimizer
) -> None:
    """A step on each batch, at a constant learning rate."""
    for ids in batches:
        optimizer.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
