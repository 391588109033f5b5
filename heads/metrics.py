"""How well an answer matches the true ones: SQuAD's token F1, and the share that was recalled."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over tokens, in [0, 1]; the best over the answers."""
    return max(_f1(words(prediction), words(answer)) for answer in answers)


def answer_recall(prediction: str, answers: Sequence[str]) -> float:
    """Share of an answer's tokens found in the prediction, in [0, 1]; the best over the answers."""
    return max(_recall(words(prediction), words(answer)) for answer in answers)


def words(text: str) -> list[str]:
    """Tokens as SQuAD's script normalises them: lower case, no punctuation, no articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _shared(found: list[str], true: list[str]) -> int:
    return sum((Counter(found) & Counter(true)).values())


def _recall(found: list[str], true: list[str]) -> float:
    # An answer of articles and punctuation alone is met by saying nothing else.
    return _shared(found, true) / len(true) if true else float(not found)


def _f1(found: list[str], true: list[str]) -> float:
    if not found or not true:
        return float(found == true)
    return 2 * _shared(found, true) / (len(found) + len(true))
