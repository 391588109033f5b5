"""A session in memory, and the few that are held at a time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.citations import Witness
from app.library import Library
from app.prompts import Layout
from app.reading import ReadReport
from app.records import SessionRecord

if TYPE_CHECKING:
    from engine.cache import DocCache
    from engine.loader import LoadedModel
    from ingest import Document

OPEN_SESSIONS = 2


@dataclass
class OpenSession:
    """A session in memory, ready to be asked. reused: its cache came from disk."""

    record: SessionRecord
    document: Document
    model: LoadedModel
    layout: Layout
    cache: DocCache
    reused: bool
    report: ReadReport
    parse_s: float = 0.0
    model_load_s: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)
    _witness: Witness | None = None

    @property
    def pages(self) -> tuple[int, int]:
        """First and last page that were read."""
        return self.record.first_page, self.record.last_page

    def witness(self, library: Library) -> Witness:
        """What finds citations in this document; built at the first question."""
        if self._witness is None:
            sha256 = self.document.sha256
            self._witness = Witness(
                self.document,
                self.pages,
                lambda query, limit: library.search_pages(sha256, query, limit),
            )
        return self._witness


class OpenSessions:
    """The sessions that were opened last; one too many sends the oldest out."""

    def __init__(self, most: int = OPEN_SESSIONS) -> None:
        self._most = most
        self._held: OrderedDict[str, OpenSession] = OrderedDict()

    def get(self, session_id: str) -> OpenSession | None:
        """The session of this id, if it is held; it is then the latest."""
        held = self._held.get(session_id)
        if held is not None:
            self._held.move_to_end(session_id)
        return held

    def hold(self, session: OpenSession) -> None:
        """Take one in, in the place of its former self."""
        self._held[session.record.id] = session
        self._held.move_to_end(session.record.id)
        while len(self._held) > self._most:
            self._held.popitem(last=False)

    def drop(self, session_id: str) -> None:
        """Forget one; it may be unknown."""
        self._held.pop(session_id, None)

    def clear(self) -> None:
        """Forget all."""
        self._held.clear()
