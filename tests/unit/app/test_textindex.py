"""Words are compared by their letters, wherever the text breaks its lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.textindex import Words, common_run, fold, occurrences, sentence_ranges


def found(needle: str, text: str) -> list[str]:
    """The pieces of `text` in which `needle` stands."""
    part, whole = Words.of(needle), Words.of(text)
    pieces = []
    for at in occurrences(part, 0, len(part), whole):
        run = common_run(part, 0, len(part), whole, at)
        assert run is not None and run.last == len(part)
        pieces.append(text[whole.starts[run.found_first] : whole.ends[run.found_last - 1]])
    return pieces


@pytest.mark.parametrize(
    ("needle", "text", "expected"),
    [
        ("a good example", "This is a good exam-\nple of it.", "a good exam-\nple"),
        ("a well-known man", "He was a well-\nknown man.", "a well-\nknown man"),
        ("a well-known man", "He was a well known  man.", "a well known  man"),
        ("the first office", "see the \ufb01rst of\ufb01ce", "the \ufb01rst of\ufb01ce"),
        ("DON\u2019T go there", "we don't go\n there yet", "don't go\n there"),
        ("cafe\u0301 is open", "the caf\u00e9 is open", "caf\u00e9 is open"),
        ("hand\u00adwritten notes", "my handwritten notes", "handwritten notes"),
        ("stra\u00dfe 12", "in der STRASSE 12", "STRASSE 12"),
        (
            "\u5929\u4e0b\u5927\u4e8b",
            "\u300c\u5929\u4e0b\u5927\n\u4e8b\u300d",
            "\u5929\u4e0b\u5927\n\u4e8b",
        ),
    ],
)
def test_finds_words_across_breaks_hyphens_ligatures_and_case(
    needle: str, text: str, expected: str
) -> None:
    assert found(needle, text) == [expected]


@pytest.mark.parametrize(
    ("needle", "text"),
    [
        ("he art", "the artist"),
        ("art is", "the artist is"),
        ("cat sat", "the cats sat"),
        ("12 men", "112 men"),
    ],
)
def test_a_match_begins_and_ends_at_word_boundaries(needle: str, text: str) -> None:
    assert found(needle, text) == []


def test_a_run_is_cut_back_to_the_last_common_word() -> None:
    part = Words.of("the old king was dead and buried")
    text = "Now the old king was deadly tired."
    whole = Words.of(text)
    run = common_run(part, 0, len(part), whole, 1)
    assert run is not None
    assert part.folded[run.first : run.last] == ["the", "old", "king", "was"]
    assert (
        text[whole.starts[run.found_first] : whole.ends[run.found_last - 1]] == "the old king was"
    )


def test_sentences_end_at_stops_and_empty_lines_but_not_inside_numbers() -> None:
    text = 'He paid 3.50 crowns. "Why?" she asked.\n\nNobody knew'
    pieces = [text[a:b] for a, b in sentence_ranges(text, 0, len(text))]
    assert pieces == ["He paid 3.50 crowns.", '"Why?"', "she asked.", "Nobody knew"]


@pytest.mark.parametrize(
    "text",
    ["St. Lawrence came to Mr. Brown.", "J. S. Mill wrote it.", "Many, e.g. wolves, ran."],
)
def test_abbreviations_and_initials_end_no_sentence(text: str) -> None:
    assert sentence_ranges(text, 0, len(text)) == [(0, len(text))]


@given(st.text(max_size=60))
def test_every_word_knows_where_it_stands(text: str) -> None:
    words = Words.of(text)
    assert words.offsets[-1] == len(words.stream)
    for index, folded in enumerate(words.folded):
        piece = text[words.starts[index] : words.ends[index]]
        assert (
            fold(piece) == folded == words.stream[words.offsets[index] : words.offsets[index + 1]]
        )
    assert words.starts == sorted(words.starts)
