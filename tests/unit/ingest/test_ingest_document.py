"""Every character has its page and its span, and JSON keeps them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import Document, DocumentTooLarge, DocumentWarning, TocEntry
from ingest.assemble import assemble
from ingest.parts import Block, Parsed, RawPage

RECTS = st.none() | st.tuples(*[st.floats(0, 900, allow_nan=False)] * 4)
BLOCKS = st.builds(
    Block,
    text=st.text(max_size=12),
    rect=RECTS,
    chapter=st.none() | st.text(max_size=5),
    before=st.sampled_from(["\n\n", "\n", " ", ""]),
)


@st.composite
def parsed_documents(draw: st.DrawFn) -> Parsed:
    pages = [
        RawPage(number, draw(st.text(max_size=4)), draw(st.lists(BLOCKS, max_size=4)))
        for number in range(1, draw(st.integers(0, 5)) + 1)
    ]
    toc = [TocEntry(1, "start", 1)] if pages else []
    return Parsed("pdf", "page", "t", pages, toc, [DocumentWarning("code", "words", None)])


def small() -> Document:
    pages = [
        RawPage(4, "iv", [Block("First page."), Block("goes on", rect=(1.0, 2.0, 3.5, 4.0))]),
        RawPage(5, "v", []),
        RawPage(6, "1", [Block("and ends.", before=" ", chapter="End")]),
    ]
    return assemble(Parsed("pdf", "page", "Small", pages), "ab" * 32, 1000)


@settings(deadline=None)  # a busy machine is no failure
@given(parsed_documents())
def test_pages_and_spans_tile_the_text(parsed: Parsed) -> None:
    document = assemble(parsed, "00", 10_000)
    document.check()
    for char in range(len(document.text)):
        page, span = document.page_at(char), document.span_at(char)
        assert page.start <= char < page.end
        assert span.start <= char < span.end
        assert span.page == page.number


@settings(deadline=None)  # a busy machine is no failure
@given(parsed_documents())
def test_every_block_is_found_at_its_span(parsed: Parsed) -> None:
    document = assemble(parsed, "00", 10_000)
    blocks = [block for page in parsed.pages for block in page.blocks if block.text.strip()]
    assert len(blocks) == len(document.spans)
    for block, span in zip(blocks, document.spans, strict=True):
        expected = block.text.replace("\0", "\ufffd")
        assert document.text[span.start : span.end].startswith(expected)
        assert span.rect == block.rect


@settings(deadline=None)  # a busy machine is no failure
@given(parsed_documents())
def test_json_round_trip(parsed: Parsed) -> None:
    document = assemble(parsed, "00", 10_000)
    assert Document.from_json(document.to_json()) == document


def test_separators_belong_to_the_block_before() -> None:
    document = small()
    assert document.text == "First page.\n\ngoes on and ends."
    assert [(s.start, s.end, s.page) for s in document.spans] == [
        (0, 13, 4),
        (13, 21, 4),
        (21, 30, 6),
    ]
    assert document.page_text(document.pages[0]) == "First page.\n\ngoes on "


def test_an_empty_page_is_kept_but_owns_no_character() -> None:
    document = small()
    assert [(p.number, p.start, p.end) for p in document.pages] == [
        (4, 0, 21),
        (5, 21, 21),
        (6, 21, 30),
    ]
    assert document.page_at(21).number == 6
    assert [p.number for p in document.pages_between(0, 30)] == [4, 6]
    assert [p.number for p in document.pages_between(20, 21)] == [4]
    assert [p.number for p in document.pages_between(21, 99)] == [6]
    assert document.pages_between(5, 5) == ()


@pytest.mark.parametrize("char", [-1, 30, 1000])
def test_outside_the_text_is_an_index_error(char: int) -> None:
    with pytest.raises(IndexError, match="outside the text of 30"):
        small().page_at(char)
    with pytest.raises(IndexError):
        small().span_at(char)


@pytest.mark.parametrize("text", ["[]", '{"format": 1}', '{"format": 99}', "{", '"x"'])
def test_foreign_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        Document.from_json(text)


def test_json_whose_ranges_have_a_gap_is_refused() -> None:
    data = json.loads(small().to_json())
    data["pages"][2][2] = 25
    with pytest.raises(ValueError, match="page 2 covers"):
        Document.from_json(json.dumps(data))


def test_too_much_text_is_refused_while_it_grows() -> None:
    pages = [RawPage(1, "1", [Block("x" * 600), Block("y" * 600)])]
    with pytest.raises(DocumentTooLarge, match="1,000 characters"):
        assemble(Parsed("txt", "section", "t", pages), "00", 1000)
