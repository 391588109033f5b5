"""Words are compared by their letters, wherever the text breaks its lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.textindex import Run, Words, common_run, fold, occurrences, sentence_ranges


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
        ("1,200,000 men", "all 1200000 men", "1200000 men"),
        ("1200 men", "all 1\u202f200 men", "1\u202f200 men"),
        ("1200 men", "all 1'200 men", "1'200 men"),
        ("-300 euros", "some \u2212300 euros", "\u2212300 euros"),
        ("-$300 now", "it is -300 now", "-300 now"),
        ("pages 5\u20137", "see pages 5-7", "pages 5-7"),
        ("$1.50 a day", "at 1.50 a day", "1.50 a day"),
        ("covid19 is over", "Covid-19 is over", "Covid-19 is over"),
        ("10\u2075 cells", "some 10^5 cells", "10^5 cells"),
        ("10\u207b\u2075 cells", "some 10^\u22125 cells", "10^\u22125 cells"),
        ("0.5 percent", "but .5 percent", ".5 percent"),
        ("5 kg of it", "has 5kg of it", "5kg of it"),
        ("the 1990s ended", "as the 1990's ended", "the 1990's ended"),
        ("in 1815", "He died in 1815.\u201d", "in 1815"),
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
        ("15 million", "1.5 million"),
        ("5 million", "1.5 million"),
        ("1200 men", "12.00 men"),
        ("57 days", "5-7 days"),
        ("57 inches", "5'7 inches"),
        ("5 percent", ".5 percent"),
        ("25% a year", "2.5% a year"),
        ("1.25 a year", "12.5 a year"),
        ("300 euros", "-300 euros"),
        ("300 euros", "\u2212\u20ac300 euros"),
        ("12 3 men", "1 23 men"),
        ("105 cells", "10\u2075 cells"),
        ("105 cells", "10^5 cells"),
        ("10 5 cells", "10^5 cells"),
        ("125 miles", "12\u00bd miles"),
        ("212 miles", "2\u00bd miles"),
        ("0125 miles", "0,125 miles"),
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


@pytest.mark.parametrize(
    "text",
    [
        "विश्वविद्यालय",
        "தமிழ்நாடு",
        "বাংলাদেশ",
        "తెలుగు",
        "ត្រីកោណ",
        "မြန်မာ",
        "בְּרֵאשִׁית",
        "مُحَمَّد",
        "ক্‍ষ",
    ],
    ids=["Hindi", "Tamil", "Bengali", "Telugu", "Khmer", "Burmese", "Hebrew", "Arabic", "joiner"],
)
def test_signs_and_points_belong_to_their_word(text: str) -> None:
    words = Words.of(f"({text}) {text}.")
    assert words.folded == [fold(text)] * 2
    assert (words.starts[0], words.ends[0]) == (1, 1 + len(text))


@pytest.mark.parametrize(
    ("needle", "text"),
    [
        ("दान", "दिन"),
        ("पुनी", "पानी"),
        ("राजा", "महाराजा"),
    ],
)
def test_a_vowel_sign_makes_another_word(needle: str, text: str) -> None:
    assert found(needle, text) == []


@pytest.mark.parametrize(
    ("pointed", "plain"),
    [
        ("בְּרֵאשִׁית", "בראשית"),
        ("مُحَمَّد", "محمد"),
    ],
    ids=["Hebrew", "Arabic"],
)
def test_points_that_may_be_left_out_do_not_count(pointed: str, plain: str) -> None:
    assert fold(pointed) == plain
    assert found(plain, pointed) == [pointed] and found(pointed, plain) == [plain]


def test_sentences_end_at_stops_and_empty_lines_but_not_inside_numbers() -> None:
    text = 'He paid 3.50 crowns. "Why?" she asked.\n\nNobody knew'
    pieces = [text[a:b] for a, b in sentence_ranges(text, 0, len(text))]
    assert pieces == ["He paid 3.50 crowns.", '"Why?"', "she asked.", "Nobody knew"]


@pytest.mark.parametrize("stop", list("\u3002\uff01\uff1f\u0964\u0965\u061f\u06d4\u17d4"))
def test_stops_of_other_scripts_end_a_sentence_without_a_blank(stop: str) -> None:
    text = f"ab{stop}cd{stop}\u300def"
    pieces = [text[a:b] for a, b in sentence_ranges(text, 0, len(text))]
    assert pieces == [f"ab{stop}", f"cd{stop}\u300d", "ef"]


@pytest.mark.parametrize(
    "text",
    ["St. Lawrence came to Mr. Brown.", "J. S. Mill wrote it.", "Many, e.g. wolves, ran."],
)
def test_abbreviations_and_initials_end_no_sentence(text: str) -> None:
    assert sentence_ranges(text, 0, len(text)) == [(0, len(text))]


@given(st.text(max_size=60))
def test_every_word_knows_where_it_stands(text: str) -> None:
    words = Words.of(text)
    for index, folded in enumerate(words.folded):
        piece = text[words.starts[index] : words.ends[index]]
        assert fold(piece) == folded == words.stream[words.offsets[index] : words.stops[index]]
    assert words.starts == sorted(words.starts)


@given(st.lists(st.sampled_from(["1", "15", ".5", "a", "-", ",200", " "]), max_size=8).map("".join))
def test_a_text_stands_in_itself(text: str) -> None:
    words = Words.of(text)
    if len(words):
        assert common_run(words, 0, len(words), words, 0) == Run(0, len(words), 0, len(words))
