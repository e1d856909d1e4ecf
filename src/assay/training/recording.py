"""Diagnostics during training, on a fixed part of the validation text."""

from __future__ import annotations

from collections.abc import Sequence

from assay.data.windows import TokenData
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows
from assay.models import Decoder
from assay.training.diagnose import carry_out

WINDOWS = 4


class Recorder:
    """The numbers of some diagnostics, of a decoder while it trains.

    What a diagnostic cannot measure on this model is left out.
    """

    def __init__(self, names: Sequence[str], data: TokenData, sequence_length: int) -> None:
        self.names = names
        ids = [int(id) for id in data.validation[: WINDOWS * sequence_length + WINDOWS] if id != data.separator]
        length = min(sequence_length, len(ids))
        self.windows = Windows.of(
            {data.corpus: ids}, separator=data.separator, length=length, tokens=WINDOWS * length
        )

    def __call__(self, model: Decoder) -> dict[str, float]:
        """``diagnostic.number``: value; the model goes on in the mode that it was in."""
        training = model.training
        try:
            results, _ = carry_out(Subject(model), self.windows, self.names)
        finally:
            model.train(training)
        return {f"{name}.{key}": value for name, result in results.items() for key, value in result.scalars.items()}
