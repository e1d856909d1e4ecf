"""``mixture``: several corpora, each with a fixed share of every batch.

    corpus = { name = "mixture", corpora = ["python-stdlib", "text:notes"], shares = [0.95, 0.05] }

A share of 0 means that a corpus is not trained on, only evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from assay.data.corpora import Corpus, Document, corpora
from assay.data.spec import component, plain
from assay.errors import UserError


def _several(members: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(members) < 2:
        raise PydanticCustomError("component", "a mixture holds two corpora or more")
    return members


Member = Annotated[Any, AfterValidator(plain(corpora))]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@corpora.register("mixture")
class Mixture(Corpus):
    """Shares are proportions: they need not sum to 1, and are equal if they are not given."""

    def __init__(
        self,
        *,
        corpora: Annotated[tuple[Member, ...], AfterValidator(_several)],
        shares: tuple[Share, ...] | None = None,
    ) -> None:
        self.members: list[Corpus] = [_build(member) for member in corpora]
        self.shares = shares or (1.0,) * len(self.members)
        names = [member.name for member in self.members]
        if len(self.shares) != len(names):
            raise UserError(f"corpus 'mixture' has {len(names)} corpora and {len(self.shares)} shares; give one each")
        if not any(self.shares):
            raise UserError("corpus 'mixture': all shares are 0; give a corpus one above it")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"corpus 'mixture' names {twice!r} twice; name it once, with the sum of the shares")
        parts = (f"{share:g} {name}" for share, name in zip(self.shares, names, strict=True))
        self.name = f"mixture ({', '.join(parts)})"

    def documents(self) -> Iterator[Document]:
        """Those of one member after the other."""
        for member in self.members:
            for name, text in member.documents():
                yield Document(f"{member.name}/{name}", text)

    def files(self) -> list[Path]:
        found = [member.files() for member in self.members]
        return [path for files in found for path in files] if all(found) else []


def _build(member: Any) -> Corpus:
    built: Corpus = component(corpora, member).build()
    if isinstance(built, Mixture):
        raise UserError("corpus 'mixture' holds a mixture; name the corpora of both in one")
    return built
