"""Drafts from the document's own text: answers quote the book, so the book is a guess.

After a token is chosen, the last few tokens are looked up in what was read and said before; what
followed there is drafted, and one forward pass over the drafts says how far it holds (prompt
lookup decoding; verification as in 2211.17192). Every token is still drawn from the model's own
logits at its place, so drafts change when an answer comes, not what it says.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LONGEST_MATCH = 4  # tokens that are looked up, at most
SHORTEST_MATCH = 2
LONGEST_DRAFT = 12
FIRST_DRAFT = 4
REST_TOKENS = 4  # without a draft, after the shortest one failed


class Drafter:
    """Guesses what comes next in one answer.

    document  [n] int64, everything the cache was read from, kept or not
    prompt    the tokens of the question's turn

    A draft that held to its end makes the next one twice as long; one that failed at once makes
    it half as long, down to none for a while: a draft costs the time of its rows.
    """

    def __init__(self, document: Tensor, prompt: Sequence[int]) -> None:
        self._text = torch.cat([document.cpu(), torch.as_tensor(prompt, dtype=torch.int64)])
        self._length = FIRST_DRAFT
        self._rest = 0
        self._n_drafted = self._n_held = 0

    def add(self, token: int, *, drafted: bool) -> None:
        """The answer goes on with this token; drafted: as the last draft said."""
        self._text = torch.cat([self._text, self._text.new_tensor([token])])
        self._n_held += drafted

    def draft(self, n_most: int) -> list[int]:
        """At most n_most tokens that may follow; none if nothing alike was read before."""
        self._learn()
        if self._rest:
            self._rest -= 1
            return []
        n = min(self._length, n_most)
        if n < 1:
            return []
        for width in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
            at = _last_place(self._text, width, n)
            if at is not None:
                found: list[int] = self._text[at : at + n].tolist()
                self._n_drafted = len(found)
                return found
        return []

    def _learn(self) -> None:
        """Take the length of the next draft from how far the last one held."""
        drafted, held = self._n_drafted, self._n_held
        self._n_drafted = self._n_held = 0
        if not drafted:
            return
        if held == drafted:
            self._length = min(2 * self._length, LONGEST_DRAFT)
        elif held:
            self._length = held
        else:
            self._rest = REST_TOKENS if self._length == 1 else 0
            self._length = max(self._length // 2, 1)


def _last_place(text: Tensor, width: int, n_wanted: int) -> int | None:
    """Where the text goes on after an earlier occurrence of its own last `width` tokens.

    The latest one that n_wanted tokens follow, so that a text that repeats itself is followed all
    round; if there is none, the latest.
    """
    n_places = len(text) - width
    if n_places < 1:
        return None
    same = text[:n_places] == text[-width]
    for offset in range(1, width):
        same &= text[offset : offset + n_places] == text[offset - width]
    places = same.nonzero()[:, 0] + width
    if not len(places):
        return None
    far = places[places + n_wanted <= len(text)]
    return int(far[-1] if len(far) else places[-1])
