"""Characters put right: ligatures, presentation forms, odd spaces, hyphens at line ends.

Nothing here knows a file format. Cleaning happens inside a block, before offsets are counted, so
the map from characters to blocks needs no correction afterwards.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_SPACES = "\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_INVISIBLE = "\u200b\u2060\ufeff\u00ad"  # joiners U+200C and U+200D carry meaning and stay
HYPHENS = "-\u2010\u2011"
SOFT_HYPHEN = "\u00ad"
_KEEP_HYPHEN_BEFORE = frozenset({"und", "oder", "bzw", "sowie", "and", "or", "to", "et", "ou", "y"})
_COMPOUND_PART_CHARS = 4
# TeX's old fonts print an accent as a character of its own before its letter
_LOOSE_ACCENT = re.compile("([\u00a8\u00b4\u02c6\u02dc\u02c7])" + r"([^\W\d_])")
_COMBINING = {
    "\u00a8": "\u0308",
    "\u00b4": "\u0301",
    "\u02c6": "\u0302",
    "\u02dc": "\u0303",
    "\u02c7": "\u030c",
}
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_LAST_PART = re.compile(rf"([^\W_]+(?:-[^\W_]+)*)([{HYPHENS}{SOFT_HYPHEN}])$")
_FIRST_PART = re.compile(r"[^\W_]+")


def _build_table() -> dict[int, str | None]:
    """NFKC for ligatures and Arabic presentation forms only: superscripts, fractions and
    full-width forms change their meaning under NFKC and are left alone."""
    table: dict[int, str | None] = {}
    for first, last in ((0xFB00, 0xFB06), (0xFB13, 0xFB4F), (0xFB50, 0xFDFB), (0xFE70, 0xFEFC)):
        for code in range(first, last + 1):
            plain = unicodedata.normalize("NFKC", chr(code))
            if plain != chr(code):
                table[code] = plain.strip() or None
    table.update({ord(space): " " for space in _SPACES})
    table.update({ord(char): None for char in _INVISIBLE})
    table.update({code: None for code in range(0x20) if chr(code) not in "\t\n"})
    table[0x7F] = None
    for code in range(0x80, 0xA0):  # "&#151;" of a book means a dash of Windows-1252
        table[code] = bytes([code]).decode("cp1252", errors="ignore") or None
    table[0x2028] = "\n"
    table[0x2029] = "\n"
    return table


_TABLE = _build_table()
_LETTERS = {
    code: plain
    for code, plain in _TABLE.items()
    if chr(code) in _INVISIBLE or (code >= 0xFB00 and plain is not None)
}
_UNSAFE = re.compile(r"[\ud800-\udfff\x00]")


def safe_text(text: str) -> str:
    """`text` with lone surrogates and NUL, which no file or database takes, as U+FFFD."""
    return _UNSAFE.sub("\ufffd", text)


def clean_line(text: str) -> str:
    """One line with ligatures spelled out, odd spaces plain, control characters gone, composed to
    NFC. A soft hyphen stays only at the very end, where join_lines decides about it."""
    if text.isascii() and text.isprintable():
        return text.strip()
    text = text.replace("\u3000", " ").rstrip()
    soft = text.endswith(SOFT_HYPHEN)
    text = _LOOSE_ACCENT.sub(_combine, safe_text(text).translate(_TABLE))
    cleaned = unicodedata.normalize("NFC", text).strip()
    return cleaned + SOFT_HYPHEN if soft and cleaned else cleaned


def plain_letters(text: str) -> str:
    """Text with ligatures spelled out and without soft hyphens and blanks of no width, which cut
    words in two for whoever looks for them; lines and blanks stay."""
    return text if text.isascii() else text.translate(_LETTERS)


def _combine(match: re.Match[str]) -> str:
    letter = {"\u0131": "i", "\u0237": "j"}.get(match[2], match[2])
    joined = unicodedata.normalize("NFC", letter + _COMBINING[match[1]])
    return joined if len(joined) == 1 else match[0]


def garbage_count(text: str) -> int:
    """How many characters of the raw text say that the text layer has no usable encoding:
    control and replacement characters, and the private use area."""
    if text.isascii() and text.isprintable():
        return 0
    return sum(1 for char in text if _is_garbage(char))


def _is_garbage(char: str) -> bool:
    if char == "\ufffd" or "\ue000" <= char <= "\uf8ff":
        return True
    return (char < " " and char not in "\t\n\r\f") or "\x7f" <= char < "\xa0"


class Vocabulary:
    """The words of one document, to tell a hyphen of the spelling from one of the line break."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._words: set[str] = set()
        for line in lines:
            # the last word of a line may be cut: it proves nothing
            words = _WORD.findall(line.lower())
            cut = line.rstrip().endswith(tuple(HYPHENS + SOFT_HYPHEN))
            self._words.update(words[:-1] if cut else words)

    def __contains__(self, word: str) -> bool:
        return word.lower() in self._words


def join_lines(left: str, right: str, vocabulary: Vocabulary) -> tuple[str, str]:
    """How two lines of one paragraph become one: the left text, changed at its end at most, and
    the glue between. left + glue + right is the joined text.

    A line-end hyphen goes when the document writes the word without it elsewhere, or when the
    next line starts in lower case and nothing speaks for a hyphen of the spelling: the word with
    it elsewhere, or two whole words around it. "Ein- und Ausgabe" keeps hyphen and space.
    Chinese and Japanese join without a space.
    """
    if not left or not right:
        return left.removesuffix(SOFT_HYPHEN), ""
    match = _LAST_PART.search(left[-80:]) if left[-1] in HYPHENS + SOFT_HYPHEN else None
    if match:
        return _join_hyphen(left, right, match, vocabulary)
    left = left.removesuffix(SOFT_HYPHEN)
    if left[-1:] == "\u2014" or (is_cjk(left[-1:]) and is_cjk(right[0])):
        return left, ""
    return left, " "


def _join_hyphen(
    left: str, right: str, match: re.Match[str], vocabulary: Vocabulary
) -> tuple[str, str]:
    bare = left[:-1]
    if match[2] == SOFT_HYPHEN:
        return bare, ""
    first = _FIRST_PART.match(right)
    if first is None or not right[0].isalpha() or match[1].isdigit():
        return left, "" if right[0].isalnum() else " "
    if first[0].lower() in _KEEP_HYPHEN_BEFORE:
        return left, " "
    whole, hyphened = match[1] + first[0], f"{match[1]}-{first[0]}"
    if whole in vocabulary:
        return bare, ""
    if hyphened in vocabulary or not right[0].islower():
        return left, ""
    last = match[1].rpartition("-")[2]
    two_words = min(len(last), len(first[0])) >= _COMPOUND_PART_CHARS
    if two_words and last in vocabulary and first[0] in vocabulary:
        return left, ""  # "mixed-mode": a break inside one word rarely leaves two words
    return bare, ""


@lru_cache(maxsize=8192)
def is_cjk(char: str) -> bool:
    """Whether a line may break before or after this character without a space being meant."""
    if not char:
        return False
    code = ord(char)
    return (
        0x2E80 <= code <= 0x30FF
        or 0x31F0 <= code <= 0x4DBF
        or 0x4E00 <= code <= 0x9FFF
        or 0xF900 <= code <= 0xFAFF
        or 0xFF00 <= code <= 0xFFEF
        or 0x20000 <= code <= 0x323AF
    )


def page_ranges(numbers: Iterable[int]) -> str:
    """Page numbers for a sentence: "3, 7-12 and 40"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    if len(words) > 12:
        words = [*words[:12], f"{len(words) - 12} more places"]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
