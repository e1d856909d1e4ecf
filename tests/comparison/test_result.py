import json
import math
import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from assay.comparison.result import ArmResult, Candidate, Comparison, Point, RunResult, Tuning, thin
from assay.comparison.statistics import compare_arms
from assay.errors import AssayError, UserError


def run(arm, seed, final, **changes):
    points = [Point(step=s, tokens=s * 64, seconds=s / 10, value=4.0 - s / 100) for s in (0, 50, 100)]
    fields = {
        "arm": arm,
        "seed": seed,
        "id": f"{seed:08x}",
        "status": "diverged" if final is None else "complete",
        "value": final,
        "curve": points,
        "train": points,
        "tokens": 6400,
        "flops": 1.5e12,
        "seconds": 10.0,
        "tokens_per_second": 640.0,
        "peak_memory": 2**20,
        "parameters": 12345,
        "diverged_at": 77 if final is None else None,
    }
    return RunResult(**fields | changes)


def comparison(**changes):
    arms = [
        ArmResult(name="baseline", runs=[run("baseline", 0, 1.3), run("baseline", 1, 1.31)]),
        ArmResult(
            name="a+b",
            techniques=["a", "b"],
            differences={"model.norm": ("rms-norm", {"name": "a", "options": (1, 2)})},
            tuned=Tuning(
                chosen={"optimizer.lr": 0.02},
                candidates=[
                    Candidate(values={"optimizer.lr": 0.02}, score=1.2),
                    Candidate(values={"optimizer.lr": 2}, score=math.inf),
                ],
                seeds=[100],
            ),
            runs=[run("a+b", 0, 1.21), run("a+b", 1, None)],
        ),
    ]
    fields = {
        "title": "Norms «ü»",
        "budget": {"tokens": 6400},
        "seeds": [0, 1],
        "arms": compare_arms(arms),
        "data": {"corpus": "made up", "paths": [pathlib.Path("a/b")]},
        "hardware": {"clip": math.inf, "cores": 2},
        "versions": {"assay": "0.1.0"},
        "created": "2025-03-04T05:06:07+00:00",
        "seconds": 42.0,
        "command": "assay compare --arms baseline,a+b",
    }
    return Comparison(**fields | changes)


def test_round_trip(tmp_path):
    saved = comparison()
    path = saved.save(tmp_path / "deep" / "comparison.json")
    assert path == tmp_path / "deep" / "comparison.json"
    assert Comparison.load(path) == saved
    assert Comparison.load(tmp_path / "deep") == saved
    assert Comparison.load(path).save(tmp_path).read_text() == path.read_text()
    assert os.listdir(tmp_path / "deep") == ["comparison.json"]
    assert saved.baseline.name == "baseline"


def test_json_is_strict_and_plain(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} in JSON")

    data = json.loads(comparison().save(tmp_path).read_text(), parse_constant=refuse)
    assert data["format"] == 1
    assert data["hardware"] == {"clip": None, "cores": 2}
    assert data["data"]["paths"] == ["a/b"]
    assert data["arms"][1]["differences"] == {
        "model.norm": ["rms-norm", {"name": "a", "options": [1, 2]}],
    }
    assert data["arms"][1]["tuned"]["candidates"][1]["score"] is None
    assert data["arms"][1]["runs"][1]["value"] is None
    assert data["created"] == "2025-03-04T05:06:07Z"


@given(st.floats())
def test_point_keeps_only_finite_values(value):
    point = Point(step=1, tokens=1, seconds=1, value=value)
    assert point.value == (value if math.isfinite(value) else None)
    assert Point.model_validate_json(point.model_dump_json()) == point


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": None, "status": "complete"}, "complete run cannot have the value None"),
        ({"status": "diverged"}, "diverged run cannot have the value 1.3"),
        ({"value": math.nan}, "finite number"),
        ({"tokens": -1}, "greater than or equal to 0"),
        ({"speed": 3}, "Extra inputs"),
        ({"train": [Point(step=0, tokens=0, seconds=0, value=1)] * 201}, "at most 200"),
    ],
)
def test_run_refuses_what_cannot_be(changes, message):
    with pytest.raises(ValidationError, match=message):
        run("a", 0, 1.3, **changes)


def test_arm_refuses_two_runs_of_one_seed_and_runs_of_others():
    with pytest.raises(ValidationError, match="two runs with one seed"):
        ArmResult(name="a", runs=[run("a", 0, 1.0), run("a", 0, 1.1)])
    with pytest.raises(ValidationError, match="run of another arm"):
        ArmResult(name="a", runs=[run("b", 0, 1.0)])


def test_comparison_refuses_wrong_arms():
    arms = comparison().arms
    with pytest.raises(ValidationError, match="two arms have one name"):
        comparison(arms=[arms[0], arms[0]])
    with pytest.raises(ValidationError, match="'a\\+b', is the baseline"):
        comparison(arms=list(reversed(arms)))
    with pytest.raises(ValidationError, match="at least 1"):
        comparison(arms=[])
    with pytest.raises(ValidationError, match="cannot be written as JSON"):
        comparison(hardware={"device": object()})
    with pytest.raises(ValidationError, match="timezone"):
        comparison(created="2025-03-04T05:06:07")


def damaged(tmp_path, text):
    path = tmp_path / "comparison.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        Comparison.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))
    return str(caught.value)


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"no comparison at .*nowhere"):
        Comparison.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no comparison at .*comparison.json"):
        Comparison.load(tmp_path)
    good = comparison().model_dump(mode="json")
    assert "not valid JSON" in damaged(tmp_path, "{")
    assert "not valid JSON" in damaged(tmp_path, b"\xff\xfe")
    assert "NaN is not a JSON number" in damaged(tmp_path, '{"format": 1, "seconds": NaN}')
    assert "has no 'format'" in damaged(tmp_path, "[1]")
    assert "has no 'format'" in damaged(tmp_path, "{}")
    assert "format 2, this assay reads 1: a newer assay" in damaged(tmp_path, json.dumps(good | {"format": 2}))
    assert "format 0, this assay reads 1: the first format" in damaged(tmp_path, '{"format": 0}')
    assert "alpha: Input should be less than 1" in damaged(tmp_path, json.dumps(good | {"alpha": 2}))
    assert "title: Field required" in damaged(tmp_path, json.dumps({k: v for k, v in good.items() if k != "title"}))
    good["arms"][0]["runs"][1]["seed"] = 0
    assert "arms.0: arm 'baseline' has two runs with one seed" in damaged(tmp_path, json.dumps(good))


def test_load_of_a_place_that_cannot_be_read(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot read .*Not a directory"):
        Comparison.load(tmp_path / "file" / "comparison.json")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = comparison().save(tmp_path)
    before = path.read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "replace", full)
    with pytest.raises(AssayError, match=r"no space left to write .*comparison.json"):
        comparison(title="other").save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["comparison.json"]


def test_save_to_an_impossible_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AssayError, match=r"cannot write .*comparison.json"):
        comparison().save(tmp_path / "file" / "comparison.json")


@given(st.integers(0, 1000), st.integers(1, 200))
def test_thin_keeps_the_end_and_the_mean(count, limit):
    points = [Point(step=i, tokens=2 * i, seconds=i, value=i) for i in range(count)]
    thinned = thin(points, limit)
    assert len(thinned) <= limit
    assert [p.step for p in thinned] == sorted({p.step for p in thinned})
    if points:
        size = math.ceil(count / limit)
        assert thinned[-1].step == points[-1].step
        assert thinned[0].value == pytest.approx((size - 1) / 2)
    if count <= limit:
        assert thinned == points


def test_thin_leaves_out_what_is_not_finite():
    points = [Point(step=i, tokens=i, seconds=i, value=v) for i, v in enumerate([1, math.nan, None, math.inf])]
    assert [p.value for p in thin(points, 2)] == [1, None]
