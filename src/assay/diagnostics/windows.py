"""The text that a model is diagnosed on: windows of tokens, each of one domain."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from assay.errors import UserError

TOGETHER = 2048
"""Tokens that go through the model at once."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """Rows of tokens of equal length, each preceded by the separator, and the domain that each comes from."""

    ids: Int[Tensor, "windows time"]
    domains: tuple[str, ...]
    """The domain of each window."""

    @classmethod
    def of(cls, texts: Mapping[str, Sequence[int]], *, separator: int, length: int, tokens: int) -> Windows:
        """About ``tokens`` tokens, the same number of windows from each domain, spread evenly over its text.

        ``texts`` are token ids by domain. Raises ``UserError`` for a domain shorter than one window.
        """
        wanted = max(1, tokens // (length * len(texts)))
        rows, domains = [], []
        for domain, ids in texts.items():
            if len(ids) < length:
                raise UserError(f"{domain}: {len(ids)} tokens, fewer than one window of {length}; give a longer text")
            count = min(wanted, len(ids) // length)
            gap = (len(ids) - count * length) // count
            for number in range(count):
                start = number * (length + gap)
                rows.append([separator, *ids[start : start + length - 1]])
                domains.append(domain)
        return cls(torch.tensor(rows), tuple(domains))

    @property
    def names(self) -> list[str]:
        """The domains, in order."""
        return list(dict.fromkeys(self.domains))

    def batches(self, device: torch.device | str = "cpu") -> Iterator[Windows]:
        """A few windows at a time, all of a batch of one domain."""
        size = max(1, TOGETHER // self.ids.shape[1])
        for domain in self.names:
            rows = torch.tensor([row for row, name in enumerate(self.domains) if name == domain])
            for part in rows.split(size):
                yield Windows(self.ids[part].to(device), (domain,) * len(part))
