"""``assay analyse excision-score``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text

if TYPE_CHECKING:
    from assay.analysis.excision_score import ExcisionScore

_FIELDS = ("original", "reference", "predicted")


@analyse_app.command("excision-score")
def excision_score(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="ORIGINAL REFERENCE PREDICTED | EXAMPLES",
            help="Three text files; or one of JSON lines, each with the strings original, reference and predicted.",
        ),
    ],
    regions: Annotated[bool, typer.Option("--regions", help="Show what is left after cutting, region by region.")] = (
        False
    ),
    as_json: Json = False,
) -> None:
    """Score revisions of a document against a reference revision, blind to what all of them share."""
    from assay.analysis.excision_score import excision_score as score
    from assay.errors import UserError

    if len(paths) not in (1, 3):
        raise UserError(f"{len(paths)} files given; give original, reference, predicted, or one of JSON lines")
    examples = [tuple(map(_text, paths))] if len(paths) == 3 else _examples(paths[0])
    found = [score(*example) for example in examples]
    mean = sum(one.score for one in found) / len(found)
    if as_json:
        print_json({"mean": mean, "examples": [_document(one, regions) for one in found]})
        return
    print_table(
        ["example", "excision score", "precision", "recall", "edits", "pairwise LCS"],
        [
            [
                str(number),
                *(f"{value:.3f}" for value in (one.score, one.precision, one.recall)),
                f"{one.hits} of {one.reference_edits}, {one.predicted_edits} made",
                f"{one.pairwise:.3f}",
            ]
            for number, one in enumerate(found, 1)
        ],
    )
    for number, one in enumerate(found, 1) if regions else ():
        for region in one.regions:
            print_text(f"{number}: " + ", ".join(f"{name} {' '.join(getattr(region, name))!r}" for name in _FIELDS))
    print_text(f"mean {mean:.4f} of {len(found)}")


def _document(one: ExcisionScore, regions: bool) -> dict[str, Any]:
    names = ("score", "precision", "recall", "hits", "reference_edits", "predicted_edits", "shared", "pairwise")
    document = {name: getattr(one, name) for name in names}
    if regions:
        document["regions"] = [{name: list(getattr(region, name)) for name in _FIELDS} for region in one.regions]
    return document


def _text(path: Path) -> str:
    from assay.data.reading import decode, read
    from assay.errors import UserError

    text = decode(read(path))
    if text is None:
        raise UserError(f"{str(path)!r} is no UTF-8 text")
    return text


def _examples(path: Path) -> list[tuple[str, ...]]:
    from assay.errors import UserError

    found: list[tuple[str, ...]] = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            raise UserError(f"{str(path)!r}, line {number}: no JSON; each line is one object") from None
        values = [record.get(name) for name in _FIELDS] if isinstance(record, dict) else []
        fields = tuple(value for value in values if isinstance(value, str))
        if len(fields) < len(_FIELDS):
            raise UserError(f"{str(path)!r}, line {number}: not an object with the strings {', '.join(_FIELDS)}")
        found.append(fields)
    if not found:
        raise UserError(f"{str(path)!r} has no examples; write one JSON object a line")
    return found
