import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.catalog.titles import title_key, title_slug

TITLES = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Poincaré ResNet", "POINCARE  RESNET"),
        ("Pre-LN, Post-LN: which?", "Pre–LN Post LN  which"),
        ("A^2TGPO", "A²TGPO"),
        ('LLMs Can Get "Brain Rot"!', "LLMs can get “brain rot”"),
        ("Efﬁcient Straße", "efficient STRASSE"),
    ],
)
def test_spellings_of_one_title_share_a_key(one, other):
    assert title_key(one) == title_key(other)


@pytest.mark.parametrize(("one", "other"), [("LoRA", "DoRA"), ("BNPO 1", "BNPO 2"), ("!!!", "???")])
def test_different_titles_have_different_keys(one, other):
    assert title_key(one) != title_key(other)


@given(TITLES)
def test_a_key_survives_normalisation_case_and_spaces(title):
    key = title_key(title)
    assert key
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert title_key(unicodedata.normalize(form, title)) == key or not any(map(str.isalnum, key))
    assert title_key(f"  {title}\t") == key


@given(st.text(st.characters(categories=["Lu", "Ll", "Nd"], max_codepoint=0x17F), min_size=1))
def test_a_key_ignores_punctuation_between_letters(title):
    assert title_key(" - ".join(title)) == title_key(title)


def test_a_slug_is_made_of_whole_words():
    assert title_slug("Poincaré ResNet: Why, and When?", ()) == "poincare-resnet-why-and-when"
    assert title_slug("word " * 40, ()) == "-".join(["word"] * 12)
    assert title_slug("x" * 100, ()) == "x" * 60
    assert title_slug("!?", ()) == "paper"


def test_a_taken_slug_is_numbered():
    assert title_slug("BNPO", {"bnpo"}) == "bnpo-2"
    assert title_slug("BNPO", {"bnpo", "bnpo-2"}) == "bnpo-3"


@given(TITLES)
def test_a_slug_is_one_word_of_the_command_line(title):
    slug = title_slug(title, ())
    assert 0 < len(slug) <= 60
    assert not any(character.isspace() or character in "+,\"'$`\\" for character in slug)
    assert not slug.startswith("-")
