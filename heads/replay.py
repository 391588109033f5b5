"""The request to repeat a document, piece by piece: how a text is asked what it needs of itself."""

from __future__ import annotations

from collections.abc import Sequence

from heads.layout import Layout

REPLAY = "Repeat the document word for word."
REPLAY_FROM = "Repeat the document word for word, from the part that follows: {before}"
_BEFORE_TOKENS = 8


def request_ids(layout: Layout, ids: Sequence[int], n_header: int, first: int) -> list[int]:
    """The request to repeat the document from position `first` on; ids holds all up to there."""
    request = REPLAY
    if first > n_header:
        before = layout.tokenizer.decode(ids[max(n_header, first - _BEFORE_TOKENS) : first])
        request = REPLAY_FROM.format(before=before)
    return layout.tail(request)


def most_request_tokens(layout: Layout) -> int:
    """No request takes more: a token that is half a character comes back as three."""
    return len(layout.tail(REPLAY_FROM.format(before=""))) + 3 * _BEFORE_TOKENS


def replay_ids(
    layout: Layout,
    ids: Sequence[int],
    n_header: int,
    first: int,
    end: int,
    closing: Sequence[int] = (),
) -> list[int]:
    """Closing of the document, request, and the piece [first, end) as the model's answer."""
    request = request_ids(layout, ids, n_header, first)
    return [*closing, *request, *ids[max(first, n_header) : end]]
