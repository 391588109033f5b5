"""Raised text in a line of plain letters: 10 to the fifth is no 105, and a note's mark no digit.

A reader puts what stands raised between BEGIN and END; settle, given the whole line, writes it.
"""

from __future__ import annotations

import re

BEGIN, END = "\x02", "\x03"  # control characters, which no reader lets through
_RAISED = re.compile(f"{BEGIN}([^{BEGIN}{END}]*){END}(?=([/\u2044])?)")
_POWER = re.compile(r"[+\u2212\u2013-]?(?:\d{1,4}|[ijkmnpqrstxyz])|\d{0,2}[+\u2212\u2013-]")
_CHARGE = re.compile(r"\d{0,2}[+\u2212]")
_NOTE = re.compile(r"\d{1,3}(?:[,;\u2013-] ?\d{1,3})*")
_LAST_WORD = re.compile(r"[^\W_]+$")
_BRACKETS = re.compile(r"\(([^()]*)\)$")
_WORD = re.compile(r"[^\W\d_]{2}")
_UNITS = frozenset(("cm", "dm", "km", "mm", "nm", "ft", "in", "sec", "\u00b5m", "\u03bcm"))
_FORMULA_CHARS = 40


def settle(text: str) -> str:
    """The line with its raised parts written out: "10^5", "cm^2", "in 1905[3]", "3 1/2".

    A number or a variable is an exponent after a number that is no year, a variable or unit, or a
    formula in brackets; a sign is one after any word (a charge). Other numbers after a letter,
    a digit or a punctuation mark are marks of notes. Ordinals and the rest stay as they are.
    """
    return _RAISED.sub(_write, text) if BEGIN in text else text


def _write(match: re.Match[str]) -> str:
    raised, before = match[1], match.string[: match.start()]
    mark = raised.strip()
    if not mark or not before or before[-1].isspace():
        return raised
    if match[2] and mark.isdigit():
        return f" {raised}" if before[-1].isdigit() else raised
    if _POWER.fullmatch(mark) and _takes_power(before[-_FORMULA_CHARS:], mark):
        return raised.replace(mark, f"^{mark}", 1)
    if _NOTE.fullmatch(mark) and before[-1] not in "([/":
        return raised.replace(mark, f"[{mark}]", 1)
    return raised


def _takes_power(before: str, mark: str) -> bool:
    word = _LAST_WORD.search(before)
    if word is None:
        brackets = _BRACKETS.search(before)
        return brackets is not None and not _WORD.search(brackets[1])
    if word[0].isdigit():
        is_year = len(word[0]) == 4 and 1000 <= int(word[0]) <= 2100
        return not is_year
    return len(word[0]) == 1 or word[0] in _UNITS or bool(_CHARGE.fullmatch(mark))
