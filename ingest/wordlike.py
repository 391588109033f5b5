"""Whether letters look like language: some fonts name their letters wrongly, as one off for each.

Vowels tell of some such fonts, not of all (where each letter is named by the one after it, the
consonants that become vowels are common ones), and some notations are as poor in them (moves of
chess, assembly): a hint, to be worded as one.
"""

from __future__ import annotations

import unicodedata

# Below what pages of prose, tables and code have, whatever the language; far above a text whose
# letters are each named by the one before.
LEAST_VOWELS = 0.2
LEAST_LETTERS = 300
_VOWELS = frozenset("aeiouy")


def is_unlike_language(text: str) -> bool:
    """Whether a page's Latin letters, if they are many and most of its letters, lack vowels."""
    letters = [c for c in unicodedata.normalize("NFD", text.lower()) if c.isalpha()]
    latin = [c for c in letters if "a" <= c <= "z"]
    if len(latin) < max(LEAST_LETTERS, len(letters) / 2):
        return False
    return sum(c in _VOWELS for c in latin) < LEAST_VOWELS * len(latin)
