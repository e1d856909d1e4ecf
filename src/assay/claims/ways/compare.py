"""A comparison: arms trained alike, and one number of each run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from assay.claims.arms import Arms, budget, summary
from assay.claims.ways import Measured, Work, ways

Metric = Literal["bits_per_byte", "tokens_per_second", "peak_memory"]


@ways.register("compare")
class Compare:
    """``compare`` names the arms, the baseline first.

    ``expect`` is ``"lower"`` or ``"higher"`` (every arm than the baseline), or regions by quantity, where the
    quantities are the arms' names.
    """

    exact = False

    def __init__(
        self,
        *,
        compare: list[str],
        expect: Literal["lower", "higher"] | dict[str, str],
        metric: Metric = "bits_per_byte",
        tokens: int | str,
        seeds: int,
        tune: dict[str, list[Any]],
        run: dict[str, Any],
        patches: dict[str, dict[str, Any]] = {},  # noqa: B006  (read only)
    ) -> None:
        self.arms = Arms(compare, tokens=tokens, seeds=seeds, tune=tune, run=run, patches=patches)
        self.metric = metric
        baseline, *others = compare
        region = {"lower": "< 0", "higher": "> 0"}
        self.expect: Mapping[str, str] = (
            {f"{arm} - {baseline}": region[expect] for arm in others} if isinstance(expect, str) else expect
        )

    def measure(self, work: Work) -> Measured:
        result = self.arms.train(work)
        values = {arm.name: {run.seed: self._value(run) for run in arm.runs} for arm in result.arms}
        return Measured(values, budget(result), {"metric": self.metric, **summary(result)})

    def _value(self, run: Any) -> float | None:
        if run.status == "diverged":
            return None
        return float(run.value if self.metric == "bits_per_byte" else getattr(run, self.metric))
