"""Windows of tokens: what a step trains on, and what an evaluation reads."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from assay.data.config import DataConfig
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
    split = Split(corpus, validation=config.validation, eval_bytes=config.eval_bytes)
    tokenizer = tokenizer or config.tokenizer.build(split=split)
    data = TokenData(corpus.name, tokenizer, tokens(split, tokenizer))
    data.windows(config.sequence_length)
    return data


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

    def __init__(self, corpus: str, tokenizer: Tokenizer, tokens: Tokens) -> None:
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.vocab_size = tokens.about.vocab_size
        self.separator = tokens.about.separator
        self.train = tokens.train
        self.validation = tokens.validation
        self.eval_bytes = tokens.about.eval_bytes
        self.fingerprint = tokens.key

    def windows(self, sequence_length: int) -> int:
        """Windows in an epoch: ⌊training tokens / sequence_length⌋.

        Raises ``UserError`` if the training text is shorter than a window of ``sequence_length + 1`` tokens.
        """
        if len(self.train) <= sequence_length:
            raise UserError(
                f"corpus {self.corpus!r} has {len(self.train)} training tokens, fewer than one window of "
                f"{sequence_length + 1}; use a longer text, or a data.sequence_length below {len(self.train)}"
            )
        return len(self.train) // sequence_length

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

        The training text is a ring. In each epoch it is cut anew, from a random offset r on; window k starts
        at r + k·sequence_length and shares its last token with the first of the next window, so that each
        token is predicted at most once in an epoch. The windows come in a random order. Both depend on
        (seed, epoch) only: a batch is a function of (seed, step), whatever was read before.

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
        windows = self.windows(sequence_length)
        rows = np.arange(step * batch_size, (step + 1) * batch_size)[rank::world]
        starts = np.empty(len(rows), np.int64)
        epochs, places = np.divmod(rows, windows)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            offset, order = _epoch(seed, int(epoch), windows, sequence_length)
            starts[here] = offset + order[places[here]] * sequence_length
        index = (starts[:, None] + np.arange(sequence_length + 1)) % len(self.train)
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


class _Epoch(NamedTuple):
    offset: int
    order: Int[np.ndarray, " windows"]


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, windows: int, sequence_length: int) -> _Epoch:
    random = np.random.default_rng([seed, epoch])
    return _Epoch(int(random.integers(sequence_length)), random.permutation(windows))
