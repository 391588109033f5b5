"""Encodings: a few bad bytes do not unmake UTF-8, and only encodings of text are taken at their
word."""

from __future__ import annotations

from pathlib import Path

import pytest
from ingest_files import codes, read_here

from ingest.charset import decode

GERMAN = "Größe ist für Köln wichtig. " * 400
JAPANESE = "これは日本語の文章です。東京は首都。" * 50


def page(charset: str, text: bytes) -> bytes:
    return b"<html><head><meta charset=" + charset.encode() + b"></head><p>" + text


@pytest.mark.parametrize(
    ("data", "start", "undecoded"),
    [
        (GERMAN.encode() + b"\xff", GERMAN, 1),
        (b"\xe9t\xe9 " + GERMAN.encode(), "\ufffdt\ufffd Größe", 2),
        (JAPANESE.encode()[:-1], JAPANESE[:-1], 2),
        (JAPANESE.encode()[:-2], JAPANESE[:-1], 1),
        (JAPANESE.encode().replace(b"\xe6\x96\x87", b"\xff\x96\x87", 1), "これは日本語の\ufffd", 3),
        ("Größe für Köln".encode() + b"\xff", "Größe für Köln", 1),
        (b"\xef\xbb\xbf" + GERMAN.encode() + b"\xff", GERMAN, 1),
        (f"{GERMAN}\ufffd{GERMAN}".encode() + b"\xff", GERMAN, 1),
    ],
)
def test_utf8_with_a_few_bad_bytes_stays_utf8(data: bytes, start: str, undecoded: int) -> None:
    decoded = decode(data)
    assert decoded is not None
    assert decoded.encoding.startswith("utf-8") and not decoded.guessed
    assert decoded.text.startswith(start)
    assert decoded.undecoded == undecoded


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Größe der Stadt"),
        ("cp1252", GERMAN),
        ("cp1252", "one caf\u00e9 in a long English text " + "and more of it " * 90),
        ("cp1251", "Привет мир, это русский текст о реке. " * 50),
        ("shift_jis", JAPANESE),
        ("gb18030", "联通"),
    ],
)
def test_other_encodings_are_not_taken_for_damaged_utf8(encoding: str, text: str) -> None:
    decoded = decode(text.encode(encoding))
    assert decoded is not None and decoded.guessed
    assert decoded.undecoded == 0
    assert encoding == "gb18030" or decoded.text == text


@pytest.mark.parametrize("n_bad", [1, 3])
def test_bytes_that_cannot_be_decoded_are_announced(tmp_path: Path, n_bad: int) -> None:
    path = tmp_path / "b.txt"
    path.write_bytes(GERMAN.encode() + b"\xff" * n_bad)
    document = read_here(path)
    assert "encoding_guessed" not in codes(document)
    (warning,) = [w for w in document.warnings if w.code == "bytes_undecoded"]
    assert warning.message.startswith("1 byte could" if n_bad == 1 else "3 bytes could")


def test_sound_text_has_no_such_warning(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    path.write_text(GERMAN + "\ufffd", encoding="utf-8")
    assert not codes(read_here(path))


@pytest.mark.parametrize("charset", ["utf-16", "UTF-16LE", "utf-32", "unicode", "utf-7"])
def test_an_8_bit_page_that_says_utf16_is_utf8(charset: str) -> None:
    decoded = decode(page(charset, GERMAN.encode() + b"\xff"), declared=True)
    assert decoded is not None
    assert (decoded.encoding, decoded.guessed, decoded.undecoded) == ("utf-8", False, 1)
    assert GERMAN in decoded.text


@pytest.mark.parametrize(
    "charset",
    """hex rot13 base64 zlib idna punycode undefined unicode_escape cp037 utf-16 utf-8
    no-such-thing""".split(),  # noqa: SIM905
)
def test_a_name_that_is_no_encoding_of_pages_leaves_a_guess(tmp_path: Path, charset: str) -> None:
    path = tmp_path / "b.html"
    path.write_bytes(page(charset, "Größe und Maß, +AGE- \\x41".encode("cp1252")))
    document = read_here(path)
    assert document.text == "Größe und Maß, +AGE- \\x41"
    assert "encoding_guessed" in codes(document)


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("iso-8859-2", "Zażółć gęślą jaźń"),
        ("windows-1251", "Привет мир"),
        ("koi8-r", "Привет мир"),
        ("shift_jis", JAPANESE),
        ("euc-jp", JAPANESE),
        ("gb2312", "联通 和 电信"),
        ("big5", "東京"),
        ("euc-kr", "서울"),
    ],
)
def test_an_encoding_that_is_named_is_taken(tmp_path: Path, charset: str, text: str) -> None:
    path = tmp_path / "b.html"
    path.write_bytes(page(charset, text.encode(charset)))
    document = read_here(path)
    assert document.text == text
    assert not codes(document)


def test_a_page_that_says_utf8_and_mostly_is_stays_utf8() -> None:
    data = page("utf-8", "Grüße aus Köln".encode() + b"\xff \xff")
    decoded = decode(data, declared=True)
    assert decoded is not None
    assert (decoded.encoding, decoded.undecoded) == ("utf-8", 2)


@pytest.mark.parametrize(
    "head",
    [
        '<META HTTP-EQUIV="Content-Type" CONTENT="text/html; CHARSET={0}">',
        "<META CHARSET='{0}'>",
        '<?XML VERSION="1.0" ENCODING="{0}"?>',
    ],
)
def test_an_encoding_named_in_capitals_is_taken(tmp_path: Path, head: str) -> None:
    path = tmp_path / "b.html"
    markup = f"{head.format('windows-1251')}<TITLE>Страница</TITLE><P>Привет мир"
    path.write_bytes(markup.encode("cp1251"))
    document = read_here(path)
    assert (document.title, document.text) == ("Страница", "Привет мир")
    assert not codes(document)


@pytest.mark.parametrize(
    ("charset", "meant", "text"),
    [
        ("iso-8859-1", "cp1252", "“Don’t go,” she said – it cost 5 €."),
        ("us-ascii", "cp1252", "“Don’t go”"),
        ("iso-8859-9", "cp1254", "“Şişli”"),
        ("gb2312", "gb18030", "朱镕基"),
        ("gbk", "gb18030", "€ 朱镕基"),
        ("shift_jis", "cp932", "①髙橋さん～は㈱東京"),
        ("euc-kr", "cp949", "똠방각하 펲시"),
        ("big5", "cp950", "東京€"),
        ("tis-620", "cp874", "“กขค”"),
    ],
)
def test_an_old_name_means_its_windows_superset(
    tmp_path: Path, charset: str, meant: str, text: str
) -> None:
    path = tmp_path / "b.html"
    path.write_bytes(page(charset, text.encode(meant)))
    document = read_here(path)
    assert document.text == text
    assert not codes(document)


def test_a_log_with_colours_is_text(tmp_path: Path) -> None:
    path = tmp_path / "b.log"
    path.write_bytes(b"".join(b"\x1b[1;32mINFO\x1b[0m ok %d\x1b[K\n" % i for i in range(100)))
    document = read_here(path)
    assert document.text.startswith("INFO ok 0\nINFO ok 1\n")
    assert "\x1b" not in document.text
