"""Characters put right, and what must not be touched."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.clean import (
    SOFT_HYPHEN,
    Vocabulary,
    clean_line,
    garbage_count,
    join_lines,
    page_ranges,
    safe_text,
)

TEXT = st.text(max_size=60)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("e\ufb03cient \ufb01nd \ufb02ow", "efficient find flow"),
        ("a\u00a0b\u2009c\u202fd", "a b c d"),
        ("co\u00adop\u200berate", "cooperate"),
        ("na\u00a8\u0131ve f\u00a8ur caf\u00b4e", "na\u00efve f\u00fcr caf\u00e9"),
        ("u\u0308ber", "\u00fcber"),
        ("bell\x07 and \x00null", "bell and \ufffdnull"),
        ("\ufeb3\ufefc\ufee1", "\u0633\u0644\u0627\u0645"),
        ("\ud800x", "\ufffdx"),
    ],
)
def test_ligatures_spaces_accents_and_forms_become_plain(raw: str, clean: str) -> None:
    assert clean_line(raw) == clean


@pytest.mark.parametrize("kept", ["x\u00b2", "\u00bd", "\uff21", "\u2460", "a\u200cb", "\u2026"])
def test_characters_that_nfkc_would_falsify_stay(kept: str) -> None:
    assert clean_line(kept) == kept


@settings(deadline=None)  # a busy machine is no failure
@given(TEXT)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean_line(text)
    assert clean_line(once) == once


@settings(deadline=None)  # a busy machine is no failure
@given(TEXT)
def test_cleaned_text_can_be_stored(text: str) -> None:
    cleaned = clean_line(text)
    cleaned.encode("utf-8")
    assert "\0" not in cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    safe_text(text).encode("utf-8")


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(st.characters(categories=("Ll", "Lu", "Nd")), max_size=40))
def test_letters_and_digits_are_never_lost(text: str) -> None:
    assert len(clean_line(text)) >= len(unicodedata.normalize("NFC", text)) - text.count("\u0130")


@settings(deadline=None)  # a busy machine is no failure
@given(TEXT, TEXT)
def test_joining_changes_the_end_of_the_left_line_only(left: str, right: str) -> None:
    new_left, glue = join_lines(left, right, Vocabulary())
    assert left.startswith(new_left)
    assert len(left) - len(new_left) <= 1
    assert glue in ("", " ")


@pytest.mark.parametrize(
    ("left", "right", "joined"),
    [
        ("the exam-", "ple shows", "the example shows"),
        ("the exam" + SOFT_HYPHEN, "ple shows", "the example shows"),
        ("COVID-", "19 cases", "COVID-19 cases"),
        ("Jean-", "Paul said", "Jean-Paul said"),
        ("Ein-", "und Ausgabe", "Ein- und Ausgabe"),
        ("one word", "and more", "one word and more"),
        ("he paused\u2014", "then went", "he paused\u2014then went"),
        ("\u65e5\u672c", "\u8a9e\u3067\u3059", "\u65e5\u672c\u8a9e\u3067\u3059"),
        ("from 1990-", "1995 on", "from 1990-1995 on"),
    ],
)
def test_two_lines_become_one(left: str, right: str, joined: str) -> None:
    start, glue = join_lines(left, right, Vocabulary())
    assert start + glue + right == joined


def test_the_document_itself_decides_about_a_hyphen() -> None:
    vocabulary = Vocabulary(["a well-known fact", "TraceMonkey runs", "the mixed case, the mode"])
    assert "".join(join_lines("a well-", "known one", vocabulary)) == "a well-"
    assert "".join(join_lines("so Trace-", "Monkey is", vocabulary)) == "so Trace"
    assert "".join(join_lines("in mixed-", "mode here", vocabulary)) == "in mixed-"


def test_a_cut_word_is_no_evidence() -> None:
    assert "exam" not in Vocabulary(["this is an exam-"])


def test_garbage_is_counted_and_ordinary_text_is_not() -> None:
    assert garbage_count("plain text\twith tab") == 0
    assert garbage_count("\u00e4\u00f6\u65e5\u672c") == 0
    assert garbage_count("a\x02b\ufffdc\ue001") == 3


def test_page_numbers_read_like_a_sentence() -> None:
    assert page_ranges([3]) == "3"
    assert page_ranges([7, 3, 8, 9, 40]) == "3, 7-9 and 40"
    assert "more places" in page_ranges(range(1, 100, 2))
