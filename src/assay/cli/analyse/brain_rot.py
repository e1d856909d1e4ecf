"""``assay analyse brain-rot``: junk and control posts in a file, and mixtures of them of equal size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table

Posts = Annotated[
    Path,
    typer.Argument(metavar="POSTS", help='JSON lines: "text", and "popularity" or likes, retweets, replies, quotes.'),
]
Ratio = Annotated[float, typer.Option("--ratio", help="Share of the mixture's tokens that is junk.")]
Tokens = Annotated[int, typer.Option("--tokens", help="Tokens of the mixture, whatever the ratio.")]
Seed = Annotated[int, typer.Option("--seed", help="Decides which posts are drawn.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write the mixture, a corpus of JSON lines: text:OUT.")]


@analyse_app.command("brain-rot")
def brain_rot(
    posts: Posts,
    ratio: Ratio = 0.5,
    tokens: Tokens = 1_000_000,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Sort posts into junk and control, and mix them in a given dose at a given size."""
    from assay.analysis.brain_rot import kind, mixture, read_posts
    from assay.files import write_text

    found = read_posts(posts)
    rows = {
        name: [post.length for post in found if kind(post) == wanted]
        for name, wanted in (("junk", "junk"), ("control", "control"), ("neither", None))
    }
    if out is not None:
        mixed = mixture(found, ratio=ratio, tokens=tokens, seed=seed)
        write_text(out, "".join(json.dumps({"text": post.text}, ensure_ascii=False) + "\n" for post in mixed))
        for name in ("junk", "control"):
            rows[f"mixture: {name}"] = [post.length for post in mixed if kind(post) == name]
    if as_json:
        print_json({name: {"posts": len(lengths), "tokens": sum(lengths)} for name, lengths in rows.items()})
        return
    print_table(["", "posts", "tokens"], [[name, str(len(row)), str(sum(row))] for name, row in rows.items()])
