"""Titles as identities: what is the same paper, and what to call it on the command line."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container

_SLUG_LENGTH = 60


def title_key(title: str) -> str:
    """What two spellings of one title share: its letters and digits, without case, accents or ligatures.

    >>> title_key("Poincaré  ResNet") == title_key("POINCARE Res-Net")
    True
    """
    return "".join(filter(str.isalnum, _plain(title))) or title.strip()


def title_slug(title: str, taken: Container[str]) -> str:
    """A name made from whole words of the title, numbered where it is taken.

    >>> title_slug("Layer Norm: Why?", taken={"layer-norm-why"})
    'layer-norm-why-2'
    """
    slug = ""
    for word in re.findall(r"[^\W_]+", _plain(title)):
        longer = f"{slug}-{word}" if slug else word[:_SLUG_LENGTH]
        if len(longer) > _SLUG_LENGTH:
            break
        slug = longer
    slug = numbered = slug or "paper"
    count = 1
    while numbered in taken:
        count += 1
        numbered = f"{slug}-{count}"
    return numbered


def _plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character))
