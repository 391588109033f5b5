"""Bytes to text when nobody says in which encoding: UTF-8 first, then an announced guess."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED = re.compile(
    rb"""(?:<\?xml[^>]{0,200}?encoding|<meta[^>]{0,200}?charset)\s*=\s*["']?([A-Za-z0-9_.:-]{2,40})""",
    re.IGNORECASE,
)
# what pages mean by these names, after the labels of encoding.spec.whatwg.org
_MEANT = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "cp950",
}
_PLAIN = "\t\n\r\f\x1b"  # control characters of texts; ESC begins the colours of a terminal
_MULTIBYTE = ("shift_jis", "euc_jp", "gb18030", "big5", "euc_kr")
_SAMPLE_BYTES = 65536
_ASCII_PROBE = rb"<p> Az09 +AGE- \x41 \u0042"  # an escape in some codecs that are no encodings
_BAD_RUN = re.compile("[\udc80-\udcff]{1,4}")  # bytes as "surrogateescape" shows them: a character
_BAD_ALLOWED = 2  # sequences of bytes that are no UTF-8, in a text taken for UTF-8 all the same
_BAD_SHARE = 0.01  # of those beyond ASCII that are UTF-8, if that allows more
_GOOD_PER_BAD = 4  # ... and in a short text at least so many must be UTF-8 for each that is not


@dataclass(frozen=True)
class Decoded:
    """The text, its encoding, whether that encoding was only guessed, and how many bytes could not
    be decoded and became U+FFFD (known for UTF-8 and encodings that are named)."""

    text: str
    encoding: str
    guessed: bool
    undecoded: int = 0


def decode(data: bytes, *, declared: bool = False) -> Decoded | None:
    """Decode `data`, or None if it is no text at all.

    Order: byte order mark; UTF-16 by its pattern of zero bytes; UTF-8, a few bad bytes allowed;
    with `declared`, what an XML or HTML head names; a guess among Cyrillic, CJK and Western
    encodings. The guess is marked, so that the caller can say so.
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            lost = sum(_bad_runs(data)) if encoding == "utf-8-sig" else 0
            text = data.decode(encoding, errors="replace")
            return _checked(text, encoding, guessed=False, undecoded=lost)
    if wide := _utf16_pattern(data):
        return _checked(data.decode(wide, errors="replace"), wide, guessed=True)
    named = _declared_encoding(data) if declared else None
    text = data.decode("utf-8", errors="replace")
    bad = _bad_runs(data) if "\ufffd" in text else []
    if _is_utf8(text, bad, named):
        return _checked(text, "utf-8", guessed=False, undecoded=sum(bad))
    if named is not None and named != "utf-8":
        text = data.decode(named, errors="replace")
        return _checked(text, named, guessed=False, undecoded=text.count("\ufffd"))
    encoding = _guess(data)
    return _checked(data.decode(encoding, errors="replace"), encoding, guessed=True)


def _bad_runs(data: bytes) -> list[int]:
    """Lengths in bytes of what is no UTF-8, a spoilt character at a time."""
    escaped = data.decode("utf-8", errors="surrogateescape")
    return [len(run) for run in _BAD_RUN.findall(escaped)]


def _is_utf8(text: str, bad: list[int], named: str | None) -> bool:
    """Whether `text`, decoded as UTF-8, is what was meant: nothing bad in it, or little for the
    good characters beyond ASCII. If the file names UTF-8, less bad than good is enough."""
    if not bad:
        return True
    good = sum(1 for char in text if char > "\x7f" and char != "\ufffd")
    if named == "utf-8":
        return good > len(bad)
    allowed = max(_BAD_ALLOWED, _BAD_SHARE * good)
    return len(bad) <= allowed and good >= _GOOD_PER_BAD * len(bad)


def _checked(text: str, encoding: str, *, guessed: bool, undecoded: int = 0) -> Decoded | None:
    """None where the decoded characters say "binary": many control or undecodable ones."""
    sample = text[:_SAMPLE_BYTES]
    bad = sum(1 for char in sample if char == "\ufffd" or (char < " " and char not in _PLAIN))
    bad += sum(1 for char in sample if "\x7f" <= char < "\xa0")
    if bad > max(4, 0.02 * len(sample)):
        return None
    return Decoded(text, encoding, guessed, undecoded)


def _declared_encoding(data: bytes) -> str | None:
    """The encoding that an XML or HTML head means, or None. A head in 8-bit letters that names
    UTF-16 or UTF-32 means UTF-8, and older names mean their Windows supersets, as the HTML
    standard has it."""
    match = _DECLARED.search(data[:4096])
    if match is None:
        return None
    try:
        name = codecs.lookup(match[1].decode("ascii")).name
        if name.startswith(("utf-16", "utf-32")):
            return "utf-8"
        name = _MEANT.get(name, name)
        probed = _ASCII_PROBE.decode(name, errors="replace")
        return name if probed == _ASCII_PROBE.decode("ascii") else None
    except (LookupError, UnicodeError):
        return None  # unknown, or a codec of another kind: hex, rot13, idna


def _utf16_pattern(data: bytes) -> str | None:
    sample = data[:4096]
    if len(sample) < 4:
        return None
    half = len(sample) // 2
    even, odd = sample[0::2].count(0) / half, sample[1::2].count(0) / half
    if odd > 0.4 and even < 0.1:
        return "utf-16-le"
    if even > 0.4 and odd < 0.1:
        return "utf-16-be"
    return None


def _guess(data: bytes) -> str:
    sample = data[:_SAMPLE_BYTES]
    high = [byte for byte in sample if byte >= 0x80]
    if len(high) < 0.25 * max(len(sample), 1):
        return "cp1252"  # scattered accents: a Western text
    best = max(_MULTIBYTE, key=lambda name: _cjk_score(sample, name))
    if _cjk_score(sample, best) > 0.6:
        return best
    lower_1251 = sum(1 for byte in high if byte >= 0xE0)
    lower_koi8 = sum(1 for byte in high if 0xC0 <= byte < 0xE0)
    if lower_1251 + lower_koi8 > 0.8 * len(high):
        return "cp1251" if lower_1251 >= lower_koi8 else "koi8_r"
    return "cp1252"


def _cjk_score(sample: bytes, encoding: str) -> float:
    """Share of common kana, Han and Hangul among the characters beyond ASCII; undecodable and
    half-width ones count against it."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    text = decoder.decode(sample, final=False)
    beyond = [char for char in text if char > "\x7f"]
    if not beyond:
        return 0.0
    good = sum(
        1.4 if "\u3041" <= char <= "\u30ff" else 1.0
        for char in beyond
        if "\u3000" <= char <= "\u30ff"
        or "\u4e00" <= char <= "\u9fff"
        or "\uac00" <= char <= "\ud7a3"
    )
    bad = sum(1 for char in beyond if char == "\ufffd" or "\uff61" <= char <= "\uff9f")
    return (good - 3 * bad) / len(beyond)
