"""The questions are right, and each quantity is of the run that it names."""

from __future__ import annotations

import math
import re

from assay.claims.experiments.stable_then_decay import arithmetic, stable_then_decay


def test_questions_have_right_answers_with_and_without_steps() -> None:
    kinds = arithmetic(50, seed=3)
    for direct, steps in zip(kinds["direct"], kinds["steps"], strict=True):
        assert direct.split("A:")[0] == steps.split("A:")[0]
        first, more, given = map(int, re.findall(r"\d+", direct.split("A:")[0]))
        assert direct.endswith(f"A: {first + more - given}\n")
        for left, right in re.findall(r"(\d+ [+-] \d+) = (\d+)", steps.split("A:")[1]):
            a, sign, b = left.split()
            assert int(a) + int(f"{sign}{b}") == int(right)
        assert steps.endswith(f" {first + more - given}\n")
    assert kinds == arithmetic(50, seed=3) != arithmetic(50, seed=4)


def test_every_arm_is_measured_on_its_questions() -> None:
    size = {"depth": 1, "hidden_size": 64, "sequence_length": 64, "batch_size": 2}
    found = stable_then_decay(
        0, stable_tokens=128 * 20, decay_tokens=128 * 12, questions=300, eval_bytes=2048, **size
    )
    assert all(math.isfinite(value) for value in found.values())
    assert found["branch"] < found["stable"]
    assert found["whole"] < found["stable"]
    assert found["kept"] == (found["stable"] - found["branch"]) / (found["stable"] - found["whole"])
    assert len({found[arm] for arm in ("stable", "branch", "constant", "union", "whole")}) == 5
