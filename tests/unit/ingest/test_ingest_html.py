"""HTML as browsers read it: end tags that may be left out, and what is hidden."""

from __future__ import annotations

import pytest

from ingest.htmltext import html_text


def shown(markup: str) -> list[str]:
    """The blocks of a page, one string each."""
    return [block.text for block in html_text(markup).blocks]


@pytest.mark.parametrize(
    ("markup", "text", "hidden"),
    [
        (
            '<ul><li style="display:none">secret<li>Item one</ul><p>The rest<h2>Conclusion',
            ["- Item one", "The rest", "Conclusion"],
            ["secret"],
        ),
        ("<p hidden>x<div>visible?</div><p>Rest", ["visible?", "Rest"], ["x"]),
        ("<p hidden>x <b>y<p>Rest", ["Rest"], ["x", "y"]),
        ("<div><p hidden>x</div>Rest", ["Rest"], ["x"]),
        ("<div><span hidden>x</div>Rest", ["Rest"], ["x"]),
        ("<dl><dt hidden>x<dd>y<dt>z</dl>", ["y", "z"], ["x"]),
        ("<dl><dt>x<dd hidden>y<dt>z</dl>", ["x", "z"], ["y"]),
        ("<table><tr><td hidden>x<td>y<tr><td>z</table>", ["y", "z"], ["x"]),
        ("<table><tr hidden><td>x<td>y<tr><td>z</table>after", ["z", "after"], ["x", "y"]),
        ("<table><tr><th hidden>x</table>after", ["after"], ["x"]),
        ("<table><thead hidden><tr><th>x<tbody><tr><td>y</table>", ["y"], ["x"]),
        ("<table><tbody hidden><tr><td>x<tfoot><tr><td>y</table>", ["y"], ["x"]),
        ("<select><option hidden>x<option>y</select>z", ["y", "z"], ["x"]),
        ("<select><option hidden>x<optgroup><option>y</select>z", ["y", "z"], ["x"]),
        ("<ul><li hidden>a<ul><li>b<li>c</ul><li>d</ul>", ["- d"], ["a", "b", "c"]),
        ("<div hidden><p>a<p>b</div>c", ["c"], ["a", "b"]),
        ("<div hidden><ul><li>a</div>c", ["c"], ["a"]),
        ("<div hidden>a</p>b</div>c", ["c"], ["a", "b"]),
        ("<div hidden>a</section>b</div>c", ["c"], ["a", "b"]),
        ("<section><div hidden>a</section>c", ["c"], ["a"]),
        ("<p>a <span hidden>b</span> c", ["a c"], ["b"]),
        ("<p hidden>a<button><p>b</p></button>c<p>d", ["d"], ["a", "b", "c"]),
        ("<table><tr><td hidden>a<table><tr><td>b</table>c<td>d</table>", ["d"], ["a", "b", "c"]),
        ("<select><option><td hidden>x</select><p>y", ["x", "y"], []),  # no table: a stray tag
        ("<iframe><td>x</iframe><p>after", ["after"], []),
        ("<svg/><p>after", ["after"], []),
        ("<svg><text>label</svg><p>after", ["after"], []),
        ("<script>if (a<b) document.write('</p>')</script><p>after", ["after"], []),
    ],
)
def test_what_is_hidden_ends_where_a_browser_ends_it(
    markup: str, text: list[str], hidden: list[str]
) -> None:
    assert shown(markup) == text
    assert html_text(markup).hidden == hidden


def test_rows_and_cells_without_end_tags_stay_a_table() -> None:
    markup = "<table><tr><td>a<td>b<tr><td>c<td>d</table><p>e<p>f"
    assert shown(markup) == ["a\tb", "c\td", "e", "f"]


@pytest.mark.parametrize(
    ("rows", "blocks"),
    [
        (
            "<tr><th><p>Town</p></th><th><p>People</p></th></tr>"
            "<tr><td><p>Ulm</p></td><td><div>126000</div></td></tr>",
            ["Town\tPeople", "Ulm\t126000"],
        ),
        ("<tr><td></td><td><p>7</p></td></tr>", ["\t7"]),
        ("<tr><td><p>Ulm</p><p>on the Danube</p><td>1", ["Ulm on the Danube\t1"]),
        ("<tr><td>Ulm<br>Danube<td>1", ["Ulm Danube\t1"]),
        ("<tr><td><p>Only</p><p>cell</p>", ["Only", "cell"]),
        ("<tr><td>one<br>cell", ["one\ncell"]),
        ("<tr><td><h2>Head</h2>text<td><p>side", ["Head", "text", "side"]),
        ("<tr><td><ul><li>a<li>b</ul><td>side", ["- a", "- b", "side"]),
        ("<tr><td><table><tr><td>x<td>y</table><td>z", ["x\ty", "z"]),
        (
            "<tr><td><p>menu<td>" + f"<p>{'essay ' * 60}" * 2,
            ["menu", *[("essay " * 60).strip()] * 2],
        ),
        ("<tr><td>a<td>b</td></tr>tail", ["a\tb", "tail"]),
    ],
)
def test_cells_of_a_row_stay_in_one_line(rows: str, blocks: list[str]) -> None:
    assert shown(f"<p>before<table>{rows}</table>") == ["before", *blocks]


def test_a_cdata_section_is_text() -> None:
    assert shown("<p><![CDATA[Important & more]]> after") == ["Important & more after"]


def test_invisible_letters_cut_no_word() -> None:
    assert shown("<p>Donau&shy;dampf&shy;schiff o\ufb03ce a&#8203;b &copy;") == [
        "Donaudampfschiff office ab \u00a9"
    ]


def test_an_empty_item_gives_its_mark_to_nobody() -> None:
    assert shown("<ul><li><svg></svg></ul><h2>Top</h2>") == ["Top"]


def test_a_heading_left_open_ends_with_its_section() -> None:
    blocks = html_text("<section><h2>Top</section><p>Body").blocks
    assert [(block.text, block.level) for block in blocks] == [("Top", 2), ("Body", 0)]


def test_many_open_elements_take_no_time_that_grows_with_their_square() -> None:
    n = 30_000
    assert shown("<div>" * n + "text" + "</div>" * n) == ["text"]
    assert shown("<div hidden>" + "<b>" * n + "x</p>" * n + "</div>rest") == ["rest"]
