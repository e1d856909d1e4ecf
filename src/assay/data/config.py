"""What a run reads: a corpus, a tokenizer, and how they are cut."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from assay.config import Config
from assay.data.corpora import Corpus, corpora
from assay.data.order import Order, orders
from assay.data.spec import expand
from assay.data.tokenizers import Tokenizer, tokenizers
from assay.quantities import Count
from assay.slots import Component, In


class DataConfig(Config):
    """The table ``data`` of a run.

    Attributes:
        corpus: ``python-stdlib``, ``text:PATH``, ``hf:NAME[:CONFIG]``, or a ``mixture`` of such.
        order: ``shuffled``, or in which order documents are read.
        tokenizer: ``bytes``, ``bpe``, ``bpe:VOCAB_SIZE`` or ``hf:FOLDER``.
        sequence_length: tokens that a sequence predicts.
        batch_size: sequences in a step, over all devices together.
        validation: share of the documents that is kept for validation.
        eval_bytes: UTF-8 bytes of validation text that an evaluation reads, at most; one character takes up
            to four.
    """

    corpus: Annotated[Component[Corpus], In(corpora), BeforeValidator(expand(corpora))] = Component(
        corpora, "python-stdlib"
    )
    order: Annotated[Component[Order], In(orders, default="uniform"), BeforeValidator(expand(orders))] = Component(
        orders, "shuffled"
    )
    tokenizer: Annotated[Component[Tokenizer], In(tokenizers), BeforeValidator(expand(tokenizers))] = Component(
        tokenizers, "bytes"
    )
    sequence_length: Count = 256
    batch_size: Count = 16
    validation: float = Field(0.05, gt=0, lt=0.5)
    eval_bytes: Annotated[Count, Field(ge=4)] = 65536
