"""Windows of tokens: what a step trains on, and what an evaluation reads."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from assay.data.config import DataConfig
from assay.data.corpora.mixture import Mixture
from assay.data.order import Documents, Order
from assay.data.order.shuffled import Shuffled
from assay.data.reading import decode, read
from assay.data.split import Split
from assay.data.store import Tokens, tokens
from assay.data.tokenizers import Tokenizer
from assay.errors import UserError

IGNORED = -100


def prepare(config: DataConfig, tokenizer: Tokenizer | None = None) -> TokenData:
    """Read, split and tokenise the corpus, or open what an earlier call left in the cache.

    ``tokenizer``, of a model that is there already, takes the place of the one that the configuration names.
    Raises ``UserError`` if the corpus or the tokenizer cannot be used or the training text is shorter than
    one window, and ``AssayError`` if the cache cannot be written.
    """
    corpus = config.corpus.build()
    if isinstance(corpus, Mixture):
        data = _mixed(config, corpus, tokenizer)
    else:
        split = Split(corpus, validation=config.validation, eval_bytes=config.eval_bytes)
        data = _member(config, split, tokenizer or config.tokenizer.build(split=split))
    data.windows(config.sequence_length)
    return data


def _member(config: DataConfig, split: Split, tokenizer: Tokenizer, *, ordered: bool = True) -> TokenData:
    found = tokens(split, tokenizer)
    documents = Documents(found.train, found.about.separator, split.key, split.training_documents)
    order = config.order.build(documents=documents) if ordered else None
    return TokenData(split.corpus.name, tokenizer, found, order)


def _mixed(config: DataConfig, corpus: Mixture, tokenizer: Tokenizer | None) -> TokenData:
    from assay.data.mixing import JointSplit, MixedData

    if config.order.name != "shuffled" and len([share for share in corpus.shares if share]) > 1:
        raise UserError(f"data.order={config.order.name!r} needs one corpus to train on; give the others shares of 0")
    splits = [Split(member, validation=config.validation, eval_bytes=config.eval_bytes) for member in corpus.members]
    shared = tokenizer or config.tokenizer.build(split=JointSplit(splits))
    members = [
        _member(config, split, shared, ordered=share > 0) for split, share in zip(splits, corpus.shares, strict=True)
    ]
    return MixedData(corpus.name, members, corpus.shares)


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
    """Σ −ln p(token) / (ln 2 · bytes): comparable between tokenizers, as a loss per token is not.

    Args:
        total_nats: sum, not mean, of the cross-entropies of all tokens of a text.
        num_bytes: length of that text in UTF-8.
    """
    return total_nats / (math.log(2) * num_bytes)


class TokenData:
    """The tokens of one corpus under one tokenizer.

    Attributes:
        corpus: the corpus' name.
        tokenizer: what made the tokens.
        vocab_size: ids are below it.
        separator: the id before each document.
        train: ids of the training text, memory-mapped.
        validation: ids of the validation text.
        eval_bytes: UTF-8 bytes of the validation text, by which ``bits_per_byte`` divides.
        fingerprint: hash of all that determines the tokens.
    """

    def __init__(self, corpus: str, tokenizer: Tokenizer, tokens: Tokens, order: Order | None = None) -> None:
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.vocab_size = tokens.about.vocab_size
        self.separator = tokens.about.separator
        self.train = tokens.train
        self.validation: np.ndarray = tokens.validation
        self.eval_bytes = tokens.about.eval_bytes
        self.order = order or Shuffled(Documents(tokens.train, self.separator))
        self.fingerprint = tokens.key
        if (identity := self.order.identity()) is not None:
            fields = json.dumps([tokens.key, identity])
            self.fingerprint = hashlib.blake2b(fields.encode(), digest_size=16).hexdigest()

    @property
    def domains(self) -> Mapping[str, TokenData]:
        """What is evaluated by itself, by name: of one corpus, itself."""
        return {self.corpus: self}

    def windows(self, sequence_length: int) -> int:
        """Windows in an epoch: ⌊tokens / sequence_length⌋, of the whole training text or of what the order samples.

        Raises ``UserError`` if the training text is shorter than a window of ``sequence_length + 1`` tokens.
        """
        tokens = self.order.tokens
        if tokens <= sequence_length:
            raise UserError(
                f"corpus {self.corpus!r} has {tokens} training tokens, fewer than one window of "
                f"{sequence_length + 1}; use a longer text, or a data.sequence_length below {tokens}"
            )
        return tokens // sequence_length

    def batch(
        self,
        step: int,
        *,
        seed: int,
        batch_size: int,
        sequence_length: int,
        rank: int = 0,
        world: int = 1,
    ) -> Int[Tensor, "batch time+1"]:
        """Rows ``rank::world`` of the batch of ``step``: sequences, each with the token that follows it.

        The order, ``shuffled`` unless another is configured, says where the rows lie. By default the training text
        is a ring. In each epoch it is cut anew, from a random offset r on; window k starts at r + k·sequence_length
        and shares its last token with the first of the next window, so that each token is predicted at most once in
        an epoch. The windows come in a random order. Both depend on (seed, epoch) only: a batch is a function of
        (seed, step), whatever was read before.

        Args:
            step: number of the batch, from 0; epochs follow one another without end.
            seed: seed of the run, not negative.
            batch_size: rows over all devices together.
            sequence_length: tokens to predict per row.
            rank: which device's share of the rows.
            world: number of devices.

        Raises:
            UserError: the training text is shorter than one window.
        """
        numbers = np.arange(step * batch_size, (step + 1) * batch_size)[rank::world]
        return self.rows(numbers, seed=seed, sequence_length=sequence_length)

    def rows(
        self, numbers: Int[np.ndarray, " rows"], *, seed: int, sequence_length: int
    ) -> Int[Tensor, "rows time+1"]:
        """The windows that stand at these places of the endless sequence of all epochs."""
        index = np.empty((len(numbers), sequence_length + 1), np.int64)
        epochs, places = np.divmod(numbers, self.windows(sequence_length))
        for epoch in np.unique(epochs):
            here = epochs == epoch
            index[here] = self.order.places(
                places[here], seed=seed, epoch=int(epoch), sequence_length=sequence_length
            )
        return torch.from_numpy(self.train[index].astype(np.int64))

    def evaluation(
        self, sequence_length: int, batch_size: int
    ) -> Iterator[tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"]]]:
        """Inputs and targets over the whole validation text, in order.

        Each token of the text is a target once. What is no text has the target -100, which a loss ignores:
        separators, and the padding of the last window. The last batch may have fewer rows.
        """
        text = np.asarray(self.validation, np.int64)
        windows = math.ceil((len(text) - 1) / sequence_length)
        inputs = np.full(windows * sequence_length, self.separator)
        targets = np.full(windows * sequence_length, IGNORED)
        inputs[: len(text) - 1] = text[:-1]
        targets[: len(text) - 1] = np.where(text[1:] == self.separator, IGNORED, text[1:])
        for rows in torch.arange(windows).split(batch_size):
            yield (
                torch.from_numpy(inputs).view(windows, sequence_length)[rows],
                torch.from_numpy(targets).view(windows, sequence_length)[rows],
            )


def text_windows(path: Path, tokenizer: Tokenizer, *, length: int, count: int | None = None) -> Tensor:
    """At most ``count`` rows of ``length`` ids: the separator and the text's tokens, cut up; the rest is left out.

    Raises ``UserError`` if the file is not text, has fewer than ``length`` tokens, or a number is too small.
    """
    if length < 2 or (count is not None and count < 1):
        raise UserError(f"windows of {length} tokens, {count} at most, leave nothing to look at; 1 of 2 is the least")
    content = decode(read(path))
    if content is None:
        raise UserError(f"{str(path)!r} is not UTF-8 text")
    ids = np.concatenate([[tokenizer.separator], tokenizer.encode(content)]).astype(np.int64)
    whole = len(ids) // length if count is None else min(count, len(ids) // length)
    if not whole:
        raise UserError(f"{str(path)!r} has {len(ids)} tokens, fewer than one window of {length}; give more text")
    return torch.from_numpy(ids[: whole * length]).view(whole, length)
