"""Techniques and the arms made of them, on a small catalogue of their own."""

import itertools
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.catalog import records
from assay.catalog.records import Catalog, Paper
from assay.catalog.techniques import Arm, commands, parse_arm, technique, techniques
from assay.config import assign, parse_assignment
from assay.errors import UserError

APPLY = {
    "peri-ln": {"patch": {"model.placement": "peri-ln"}},
    "mix-ln": {"patch": {"model.placement": "mix-ln"}},
    "seednorm": {"patch": {"model.norm": "seednorm"}},
    "small-eps": {"patch": {"model.norm.eps": 1e-8}},
    "wide-norm": {"patch": {"model.norm": {"name": "seednorm", "eps": 1e-5}}},
    "hybrid": {"patch": {"model.mixer": ["linear*3", "softmax"]}},
    "window": {"patch": {"model.mixer.window": 8}},
    "peri-too": {"patch": {"model.placement": "peri-ln", "optimizer.lr": 0.5}},
    "rsq": {"transform": "rsq"},
    "resnet": {"network": "resnet"},
    "restart": {"command": "train --set start.run=RUN"},
    "solver": {"function": "assay.optim.halpern.halpern_page"},
    "known-only": {},
}


def make(slug, **fields):
    common = {"title": slug, "area": "norm", "kind": "technique", "summary": "s", "treats": []}
    return Paper.parse({**common, "slug": slug, **fields})


@pytest.fixture(autouse=True)
def small_catalog(monkeypatch):
    made = {slug: make(slug, **fields) for slug, fields in APPLY.items()}
    made["elsewhere"] = make("elsewhere", area="head", transform="t")
    monkeypatch.setattr(records, "builtin", lambda: Catalog(made, {}, ("head", "norm")))


def test_techniques_are_the_papers_that_can_be_applied():
    assert {t.slug for t in techniques()} == APPLY.keys() - {"known-only"} | {"elsewhere"}
    assert [t.slug for t in techniques("head")] == ["elsewhere"]
    with pytest.raises(UserError, match="unknown area 'haed'; nearest: head"):
        techniques("haed")


def test_a_technique_by_name():
    assert technique("seednorm").patch == {"model.norm": "seednorm"}
    with pytest.raises(UserError, match="unknown technique 'peri-lm'; nearest: peri-ln"):
        technique("peri-lm")


def test_a_paper_without_a_way_to_apply_it_is_said_to_be_catalogued_and_never_suggested():
    with pytest.raises(UserError, match="'known-only' is catalogued but cannot be applied yet"):
        technique("known-only")
    with pytest.raises(UserError) as error:
        technique("known-onl")
    assert "known-only" not in str(error.value)


def test_the_baseline_sets_nothing():
    assert parse_arm("baseline") == parse_arm(" baseline ") == Arm("baseline", (), {})


def test_an_arm_of_one_technique_is_its_patch():
    assert parse_arm("seednorm") == Arm("seednorm", ("seednorm",), {"model.norm": "seednorm"})


def test_the_order_of_techniques_does_not_change_the_patch():
    names = ("peri-ln", "seednorm", "hybrid", "small-eps")
    arms = [parse_arm("+".join(order)) for order in itertools.permutations(names)]
    assert all(list(arm.patch.items()) == list(arms[0].patch.items()) for arm in arms)
    assert all(set(arm.techniques) == set(names) for arm in arms)
    assert assign({"model": {"norm": "rms-norm"}}, arms[0].patch) == {
        "model": {
            "placement": "peri-ln",
            "norm": {"name": "seednorm", "eps": 1e-8},
            "mixer": ["linear*3", "softmax"],
        }
    }


def test_an_arm_is_named_as_written_without_spaces():
    assert parse_arm(" seednorm + peri-ln ").name == "seednorm+peri-ln"


def test_the_same_value_twice_is_no_conflict():
    assert parse_arm("peri-ln+peri-too").patch == {"model.placement": "peri-ln", "optimizer.lr": 0.5}


@pytest.mark.parametrize(
    ("arm", "field"),
    [
        ("peri-ln+mix-ln", "model.placement"),
        ("mix-ln+seednorm+peri-too", "model.placement"),
        ("wide-norm+seednorm", "model.norm"),
        ("wide-norm+small-eps", "model.norm"),
        ("small-eps+wide-norm", "model.norm"),
        ("hybrid+window", "model.mixer"),
    ],
)
def test_two_values_for_one_field_name_both_techniques_and_the_field(arm, field):
    with pytest.raises(UserError) as error:
        parse_arm(arm)
    first, *_, last = arm.split("+")
    assert f"{first!r} and {last!r} cannot be joined: both set {field!r}" in str(error.value)


@pytest.mark.parametrize(
    ("arm", "reason"),
    [
        ("", "empty part"),
        ("seednorm+", "empty part"),
        ("+seednorm", "empty part"),
        ("seednorm+ +peri-ln", "empty part"),
        ("seednorm+peri-ln+seednorm", "names 'seednorm' twice"),
        ("baseline+seednorm", "'baseline' is the arm without techniques"),
        ("seednorm+baseline", "'baseline' is the arm without techniques"),
        ("baseline+baseline", "'baseline' is the arm without techniques"),
        ("rsq", "'rsq' is a transform"),
        ("seednorm+rsq", "'rsq' is a transform"),
        ("resnet", "'resnet' is a network for images"),
        ("restart", "'restart' is not a change of the configuration (assay train --set start.run=RUN)"),
        ("solver", "(python: from assay.optim.halpern import halpern_page) and cannot be an arm"),
        ("seednorm+known-only", "'known-only' is catalogued but cannot be applied yet"),
        ("sednorm+peri-ln", "unknown technique 'sednorm'; nearest: seednorm"),
    ],
)
def test_what_is_no_arm_is_refused_with_its_reason(arm, reason):
    with pytest.raises(UserError) as error:
        parse_arm(arm)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_an_arm_cannot_be_changed_and_can_be_a_key():
    arm = parse_arm("seednorm")
    with pytest.raises(AttributeError):
        arm.name = "other"
    assert {arm: 1}[parse_arm("seednorm")] == 1


def test_commands_of_a_patch():
    assert commands(technique("seednorm")) == [
        "assay train --set model.norm=seednorm",
        "assay compare --arms baseline,seednorm",
    ]
    assert commands(technique("peri-too"))[0] == ("assay train --set model.placement=peri-ln --set optimizer.lr=0.5")
    assert commands(technique("rsq")) == ["assay apply rsq MODEL --text FILE --out DIR"]


def test_a_command_beside_a_patch_says_what_else_is_needed():
    paper = make(
        "warm", patch={"start.name": "shrink-and-perturb"}, command="compare --arms baseline,warm --set start.run=RUN"
    )
    assert commands(paper) == ["assay compare --arms baseline,warm --set start.run=RUN"]


TEXT = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=8)
SCALARS = st.one_of(TEXT, st.sampled_from(["true", "1", "a=b", "'", "x y"]), st.integers(-(2**60), 2**60))
NUMBERS = st.one_of(st.booleans(), st.floats(allow_nan=False))
VALUES = st.recursive(
    st.one_of(SCALARS, NUMBERS), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)


@given(st.dictionaries(st.sampled_from(["model.norm", "loss", "optimizer.lr"]), VALUES, min_size=1))
def test_the_command_says_exactly_the_patch(patch):
    words = shlex.split(commands(make("some", patch=patch))[0])
    assert words[:2] == ["assay", "train"]
    assert set(words[2::2]) == {"--set"}
    assert dict(parse_assignment(word) for word in words[3::2]) == patch
