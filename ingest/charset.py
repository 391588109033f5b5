"""Bytes to text when nobody says in which encoding: strict UTF-8 first, then an announced guess."""

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
    rb"""(?:<\?xml[^>]{0,200}?encoding|<meta[^>]{0,200}?charset)\s*=\s*["']?([A-Za-z0-9_.:-]{2,40})"""
)
_MULTIBYTE = ("shift_jis", "euc_jp", "gb18030", "big5", "euc_kr")
_SAMPLE_BYTES = 65536


@dataclass(frozen=True)
class Decoded:
    """The text, its encoding, and whether that encoding was only guessed."""

    text: str
    encoding: str
    guessed: bool


def decode(data: bytes, *, declared: bool = False) -> Decoded | None:
    """Decode `data`, or None if it is no text at all.

    Order: byte order mark; UTF-16 by its pattern of zero bytes; strict UTF-8; with `declared`,
    what an XML or HTML head names; a guess among Cyrillic, CJK and Western encodings. The guess is
    marked, so that the caller can say so.
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return _checked(data.decode(encoding, errors="replace"), encoding, guessed=False)
    if wide := _utf16_pattern(data):
        return _checked(data.decode(wide, errors="replace"), wide, guessed=True)
    text = _as_utf8(data)
    if text is not None:
        return _checked(text, "utf-8", guessed=False)
    if declared and (named := _declared_encoding(data)):
        return _checked(data.decode(named, errors="replace"), named, guessed=False)
    encoding = _guess(data)
    return _checked(data.decode(encoding, errors="replace"), encoding, guessed=True)


def _as_utf8(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _checked(text: str, encoding: str, *, guessed: bool) -> Decoded | None:
    """None where the decoded characters say "binary": many control or undecodable ones."""
    sample = text[:_SAMPLE_BYTES]
    bad = sum(1 for char in sample if char == "\ufffd" or (char < " " and char not in "\t\n\r\f"))
    bad += sum(1 for char in sample if "\x7f" <= char < "\xa0")
    if bad > max(4, 0.02 * len(sample)):
        return None
    return Decoded(text, encoding, guessed)


def _declared_encoding(data: bytes) -> str | None:
    match = _DECLARED.search(data[:4096])
    if match is None:
        return None
    try:
        return codecs.lookup(match[1].decode("ascii")).name
    except LookupError:
        return None


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
