"""Brain rot: junk and control text of equal size in given doses, and the effect size of what they do.

    junk       length < 30 tokens  and  popularity > 500
    control    length > 100 tokens and  popularity = 0        (popularity: likes, retweets, replies and quotes)

    g = J (mean_junk − mean_control) / s,    J = 1 − 3 / (4 (n₁ + n₂ − 2) − 1)

with s² the pooled unbiased variance over models; |g| > 0.3 counts as more than trivial. Posts that are neither are
not used. The formula of g is the textbook's (Hedges, 1981); the paper names the statistic only.

Xing, Hong, Wang, Chen, Zhang, Grama, Tu, Wang, 2025, arXiv:2510.13928.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from assay.data.reading import decode, read
from assay.errors import UserError

Kind = Literal["junk", "control"]

JUNK_LENGTH, CONTROL_LENGTH, JUNK_POPULARITY = 30, 100, 500
REACTIONS = ("likes", "retweets", "replies", "quotes")

_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Post:
    """``length`` in tokens; ``popularity`` is the number of all reactions, ``None`` if unknown."""

    text: str
    length: int
    popularity: int | None = None


def kind(post: Post) -> Kind | None:
    """Junk, control or neither; by the length alone where the popularity is unknown. All bounds are strict."""
    if post.length < JUNK_LENGTH and (post.popularity is None or post.popularity > JUNK_POPULARITY):
        return "junk"
    if post.length > CONTROL_LENGTH and not post.popularity:
        return "control"
    return None


def count_tokens(text: str) -> int:
    """Words and single signs, about as many as a tokenizer of 100,000 ids makes of English."""
    return len(_TOKEN.findall(text))


def mixture(posts: Sequence[Post], *, ratio: float, tokens: int, seed: int) -> list[Post]:
    """Junk and control posts that hold ``tokens`` together, ``ratio`` of them junk, in a random order.

    Each part is drawn by the seed, without repetition, until it has its tokens, and is at most one post above. A
    mixture of a higher ratio holds the junk of a lower one. Raises ``UserError`` if there is not enough of a kind.
    """
    if not 0 <= ratio <= 1:
        raise UserError(f"ratio={ratio} is no share of junk; give one between 0 and 1")
    taken: list[Post] = []
    parts: tuple[tuple[Kind, float], ...] = (("junk", ratio), ("control", 1 - ratio))
    for number, (wanted, share) in enumerate(parts):
        found = [post for post in posts if kind(post) == wanted]
        left = round(share * tokens)
        if left > sum(post.length for post in found):
            have = sum(post.length for post in found)
            raise UserError(f"{left} tokens of {wanted} are asked for, and there are {have}; give more posts")
        for place in np.random.default_rng([seed, number]).permutation(len(found)):
            if left <= 0:
                break
            taken.append(found[place])
            left -= found[place].length
    return [taken[place] for place in np.random.default_rng([seed, 2]).permutation(len(taken))]


@dataclasses.dataclass(frozen=True)
class EffectSize:
    """Hedges' g with its bootstrap interval."""

    g: float
    low: float
    high: float


def hedges_g(junk: Sequence[float], control: Sequence[float]) -> float:
    """The difference of the means in pooled standard deviations, corrected for few models.

    Raises ``UserError`` for fewer than two values of an arm, and where no value differs within the arms.
    """
    if min(len(junk), len(control)) < 2:
        raise UserError(f"{len(junk)} and {len(control)} values; an effect size needs two models or more in each arm")
    freedom = len(junk) + len(control) - 2
    squares = sum(np.var(arm, ddof=1) * (len(arm) - 1) for arm in (junk, control))
    if not squares:
        raise UserError("all models of an arm have the same value; an effect size needs some that differ")
    d = (np.mean(junk) - np.mean(control)) / np.sqrt(squares / freedom)
    return float((1 - 3 / (4 * freedom - 1)) * d)


def effect_size(
    junk: Sequence[float], control: Sequence[float], *, resamples: int = 1000, level: float = 0.9, seed: int = 0
) -> EffectSize:
    """g, and the interval between the outer quantiles of g over resamples of each arm.

    Resamples without any spread are left out. Raises ``UserError`` where ``hedges_g`` does.
    """
    g = hedges_g(junk, control)
    random = np.random.default_rng(seed)
    drawn = [tuple(random.choice(arm, len(arm)).tolist() for arm in (junk, control)) for _ in range(resamples)]
    values = [hedges_g(*arms) for arms in drawn if any(len(set(arm)) > 1 for arm in arms)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return EffectSize(g, float(low), float(high))


def read_posts(path: Path, count: Callable[[str], int] = count_tokens) -> list[Post]:
    """Posts from a file of JSON lines: ``text``, and ``popularity`` or any of likes, retweets, replies and quotes.

    Raises ``UserError`` for a line that is none.
    """
    text = decode(read(path))
    if text is None:
        raise UserError(f"{str(path)!r} is no UTF-8 text")
    return list(_posts(str(path), text, count))


def _posts(name: str, text: str, count: Callable[[str], int]) -> Iterable[Post]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            body = record["text"]
            given = [record[field] for field in ("popularity", *REACTIONS) if field in record]
        except (ValueError, KeyError, TypeError):
            body, given = None, []
        if not isinstance(body, str) or not all(isinstance(n, int) and n >= 0 for n in given):
            raise UserError(
                f'{name!r}, line {number}: an object like {{"text": "...", "likes": 3, "retweets": 0}} is wanted'
            )
        yield Post(body, count(body), sum(given) if given else None)
