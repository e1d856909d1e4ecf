"""Prompt pairs as token ids, and the metric that patching moves.

    M = (d − d_corrupted) / (d_clean − d_corrupted),    d = mean over pairs of logit(answer) − logit(distractor)

at the last position: 0 on the corrupted run, 1 on the clean one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.data.reading import decode, read
from assay.data.synthetic.indirect_object import PromptPair
from assay.data.tokenizers import Tokenizer
from assay.errors import UserError

FIELDS = tuple(field.name for field in dataclasses.fields(PromptPair))


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedPairs:
    """Ids of clean and corrupted prompts, all of one length, and of the tokens whose logits are compared."""

    clean: Int[Tensor, "pairs time"]
    corrupted: Int[Tensor, "pairs time"]
    answer: Int[Tensor, " pairs"]
    distractor: Int[Tensor, " pairs"]

    @classmethod
    def encode(cls, pairs: Sequence[PromptPair], tokenizer: Tokenizer) -> Self:
        """The tokenizer's separator before each prompt; of answers the first token.

        Raises ``UserError`` unless all prompts have one length in tokens, a prompt differs from its corruption, and
        the answer's first token from the distractor's.
        """
        prompts: list[list[int]] = []
        endings: list[tuple[int, int]] = []
        for number, pair in enumerate(pairs, start=1):
            clean, corrupted, answer, distractor = tokenizer.encode_batch(dataclasses.astuple(pair))
            if min(len(answer), len(distractor)) == 0 or answer[0] == distractor[0]:
                raise UserError(
                    f"pair {number}: answer {pair.answer!r} and distractor {pair.distractor!r} "
                    "must differ in their first token"
                )
            if clean.tolist() == corrupted.tolist():
                raise UserError(f"pair {number}: the clean and the corrupted prompt are the same")
            prompts += [[tokenizer.separator, *row.tolist()] for row in (clean, corrupted)]
            endings.append((int(answer[0]), int(distractor[0])))
            for row in prompts[-2:]:
                if len(row) != len(prompts[0]):
                    raise UserError(
                        f"pair {number} has a prompt of {len(row) - 1} tokens, the first pair one of "
                        f"{len(prompts[0]) - 1}; all prompts must have as many"
                    )
        if not prompts:
            raise UserError("no prompt pairs; at least one is needed")
        ids, last = torch.tensor(prompts), torch.tensor(endings)
        return cls(ids[::2], ids[1::2], last[:, 0], last[:, 1])

    @property
    def first(self) -> int:
        """The first position at which a prompt differs from its corruption; nothing before it can matter."""
        return int((self.clean != self.corrupted).any(0).nonzero()[0])

    def to(self, device: torch.device) -> EncodedPairs:
        return EncodedPairs(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))

    def difference(self, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
        """logit(answer) − logit(distractor); rows are the pairs, repeated any number of times."""
        times = len(logits) // len(self.answer)
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, self.answer.repeat(times)] - logits[rows, self.distractor.repeat(times)]

    def span(self, clean: Float[Tensor, ""], corrupted: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """d_clean − d_corrupted. Raises ``UserError`` if it is 0, or not finite."""
        span = clean - corrupted
        if not bool(span.isfinite()) or float(span) == 0:
            raise UserError(
                f"the logit difference is {float(clean):.4g} on the clean prompts and {float(corrupted):.4g} on the "
                "corrupted ones; patching needs prompts on which it differs"
            )
        return span


def read_pairs(path: str | Path) -> list[PromptPair]:
    """Prompt pairs of a JSON-lines file, an object with ``clean``, ``corrupted``, ``answer``, ``distractor`` a line.

    Raises ``UserError`` if the file cannot be read, or a line is something else.
    """
    text = decode(read(Path(path)))
    if text is None:
        raise UserError(f"{path}: not a text file in UTF-8; one JSON object per line is needed")
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in FIELDS):
            raise UserError(f"{path}, line {number}: not a JSON object with the texts {', '.join(FIELDS)}")
        found.append(PromptPair(**{name: fields[name] for name in FIELDS}))
    return found
