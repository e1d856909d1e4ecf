"""Transforms: a trained model in, a changed model out.

A transform is constructed with its options alone and then called with a model, with text where it reads any, and with
a function that is told how far it is::

    @transforms.register("layernorm-removal")
    class LayerNormRemoval:
        reads_text = True
        def __init__(self, *, start: int = 20) -> None: ...
        def __call__(self, model: Decoder, data: TokenData | None, report: Report = silent) -> Decoder: ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from assay.data.windows import TokenData
from assay.models import Decoder
from assay.registry import Registry

Report = Callable[[float, str], None]
"""Told the share that is done, and a few words on how it stands."""


class Transform(Protocol):
    reads_text: bool
    """Whether it reads text, to calibrate or to fine-tune on."""

    def __call__(self, model: Decoder, data: TokenData | None, report: Report = ...) -> Decoder:
        """The changed model, in evaluation mode. It may be made of ``model``, which is not to be used afterwards.

        ``data`` is text under the model's tokenizer. Raises ``UserError`` for a model or a text that does not suit.
        """
        ...


transforms: Registry[Transform] = Registry("transform", "assay.transforms.surgery")


def silent(share: float, status: str) -> None:
    """The report to nobody."""
