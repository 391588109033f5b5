"""The reader: opens documents into sessions and answers questions on them.

It owns the model and the open sessions, and is used by one thread at a time; `worker.Worker` gives
the desk such a thread, a command is one by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.answering import answer
from app.answers import Answer
from app.held_model import HeldModel
from app.library import Library
from app.memory import peak_rss_bytes, rss_bytes
from app.open_session import OpenSession, OpenSessions
from app.plan import Plan, check_fits, check_length, cost_line, make_plan, page_range
from app.preparing import make_job, own_budget, serves
from app.progress import OnProgress, ignore_progress
from app.prompts import Turn
from app.reading import Job, read_document
from app.records import SESSION_READY
from app.restoring import check_same, restore
from app.settings import ReadSettings
from app.sharing import ThreadShare, both
from app.store import StoredDocument, keep_document, stored_document
from app.unread import kept_if_read

if TYPE_CHECKING:
    from engine.decoding import DecoderChoice
    from engine.generate import Sampling
    from engine.loader import LoadedModel
    from ingest import Document


class Reader:
    """Parses, plans, reads, restores and asks. Not safe to use from two threads at once.

    announce gets one sentence whenever something happens that the user should know of: a reading
    that is resumed, a damaged checkpoint that is dropped. answer_weights: as for HeldModel. Reading
    always uses the model's own weights.
    """

    def __init__(
        self,
        library: Library,
        defaults: ReadSettings | None = None,
        *,
        device: str = "auto",
        answer_weights: str | None = None,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        self.library = library
        self.paths = library.paths
        self.defaults = defaults or ReadSettings()
        self.announce = announce or (lambda text: None)
        self._share = ThreadShare(self._say)
        self._open = OpenSessions()
        self._model = HeldModel(
            self.paths.models, device, answer_weights, self._say, on_change=self._open.clear
        )

    def _say(self, text: str) -> None:
        self.announce(text)  # whoever listens now

    # Opening

    def open(
        self,
        path: Path | str,
        *,
        password: str | None = None,
        pages: tuple[int, int] | None = None,
        settings: ReadSettings | None = None,
        reread: bool = False,
        on_progress: OnProgress = ignore_progress,
        on_session: Callable[[str], None] | None = None,
        stop: Callable[[], bool] | None = None,
        while_parsing: Callable[[], None] | None = None,
    ) -> OpenSession:
        """A session for this file: restored from disk if it was read before, else read now.

        A session that an earlier version read with other defaults (other heads of the same name,
        16 bits, a smaller budget) serves as well, and is announced.

        reread      read again even if there is a snapshot (or a damaged one)
        on_session  gets the session's id before the reading begins
        while_parsing  is called again and again; an exception that it raises ends the parsing
        Raises      IngestError, EngineError, DocumentTooLong, BadPageRange; PrefillStopped after
                    the state so far was saved
        """
        stored = self._keep(Path(path), password, on_progress, while_parsing)
        with kept_if_read(self.library, stored):
            wanted = settings or self.defaults
            job = self._job(stored.document, pages, wanted, on_progress)
            if not reread:
                job = self._as_read_before_aloud(job, wanted, on_progress)
            session = self._session(job, reread, on_progress, on_session, stop)
            session.parse_s = stored.parse_s
            return session

    def reopen(
        self,
        session_id: str,
        *,
        reread: bool = False,
        on_progress: OnProgress = ignore_progress,
        on_session: Callable[[str], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> OpenSession:
        """A session of the library by its id; one that was not read to the end is read on.

        Raises NoSuchSession, SnapshotMismatch if the model is not the one of then, and what `open`
        raises.
        """
        record = self.library.session(session_id)
        held = None if reread else self._open.get(record.id)
        if held is not None:
            return held
        document = stored_document(self.paths, record.document)
        settings = ReadSettings.from_dict(record.settings)
        pages = (record.first_page, record.last_page)
        job = self._job(document, pages, settings, on_progress, trusted=not record.unverified)
        if not reread:
            job = check_same(job, record.id, self.paths.snapshot(record.id))
        return self._session(job, reread, on_progress, on_session, stop)

    def plan(
        self,
        path: Path | str,
        *,
        password: str | None = None,
        pages: tuple[int, int] | None = None,
        settings: ReadSettings | None = None,
        on_progress: OnProgress = ignore_progress,
        while_parsing: Callable[[], None] | None = None,
    ) -> Plan:
        """What reading this file would cost; nothing is read. Raises what parsing raises.

        while_parsing  as for `open`
        """
        stored = self._keep(Path(path), password, on_progress, while_parsing)
        wanted = settings or self.defaults
        with kept_if_read(self.library, stored):
            job = self._job(stored.document, pages, wanted, on_progress)
            return self._plan(self._as_read_before(job, wanted, on_progress))

    def forget(self, session_id: str) -> None:
        """Drop a session from memory (not from the library)."""
        self._open.drop(session_id)

    # Asking

    def ask(
        self,
        session: OpenSession,
        question: str,
        sampling: Sampling | None = None,
        *,
        on_text: Callable[[str], None] | None = None,
        stop: Callable[[], bool] | None = None,
        history: Sequence[Turn] = (),
        history_tokens: int = 0,
    ) -> Answer:
        """Answer a question on the frozen cache; every question starts from the same state.

        on_text  gets the text as it grows, piece by piece
        history  earlier turns, of which the latest fit into history_tokens are told to the model
        """
        started = time.perf_counter()
        decoder = self.decoder(session.model).decoder
        packed = time.perf_counter()
        with self._sharing(session.model) as look:
            made = answer(
                session,
                self.library,
                question,
                sampling,
                decoder=decoder,
                on_token=look,
                on_text=on_text,
                stop=stop,
                history=history,
                history_tokens=history_tokens,
            )
        self.library.touch_session(session.record.id)
        ended = time.perf_counter()
        return replace(made, answer_s=ended - started, packing_s=packed - started)

    def decoder(self, model: LoadedModel) -> DecoderChoice:
        """What computes the answers of a model (HeldModel.decoder)."""
        return self._model.decoder(model)

    # Inside

    def _sharing(self, model: LoadedModel) -> AbstractContextManager[Callable[[], None]]:
        """Where a model computes: on the CPU beside other programs (app.sharing)."""
        return self._share.computing() if model.device == "cpu" else nullcontext(lambda: None)

    def _keep(
        self,
        path: Path,
        password: str | None,
        on_progress: OnProgress,
        while_parsing: Callable[[], None] | None,
    ) -> StoredDocument:
        return keep_document(
            self.library,
            path,
            password,
            on_parse=lambda: on_progress("parse", 0, 0),
            while_parsing=while_parsing,
        )

    def _job(
        self,
        document: Document,
        pages: tuple[int, int] | None,
        settings: ReadSettings,
        on_progress: OnProgress,
        *,
        trusted: bool = True,
    ) -> Job:
        """What is to be read, with the model that reads it.

        trusted  False for a session from elsewhere: it may not name a model to be downloaded
        """
        from engine.registry import find

        chosen = page_range(document, pages)
        download = trusted or find(settings.model or "") is not None
        self._share.notice()
        model = self._model.get(settings.model, settings.weights, on_progress, download=download)
        heads_dir = self.paths.models / "heads"
        return make_job(document, chosen, settings, model, heads_dir, trusted=trusted)

    def _as_read_before(self, job: Job, wanted: ReadSettings, on_progress: OnProgress) -> Job:
        """The job of an earlier session that serves what is wanted, or the job itself."""
        from engine.errors import ScorerUnavailable, SnapshotError

        places = (self.paths.snapshot(job.session_id), self.paths.partial(job.session_id))
        if any(folder.exists() for folder in places):
            return job
        earlier = self._with_own_budget(job, wanted, on_progress)
        if self.paths.partial(earlier.session_id).exists():
            return earlier  # begun when long documents, too, had no more
        for record in self.library.sessions():
            if not serves(record, job, wanted):
                continue
            settings = ReadSettings.from_dict(record.settings)
            trusted = not record.unverified
            try:
                earlier = self._job(job.document, job.pages, settings, on_progress, trusted=trusted)
                return check_same(earlier, record.id, self.paths.snapshot(record.id))
            except (SnapshotError, ScorerUnavailable):
                continue  # made of something else, or damaged
        return job

    def _as_read_before_aloud(self, job: Job, wanted: ReadSettings, on_progress: OnProgress) -> Job:
        """As `_as_read_before`; an earlier session is announced."""
        earlier = self._as_read_before(job, wanted, on_progress)
        if earlier.session_id != job.session_id:
            self.announce(
                f"Used is session {earlier.session_id[:8]}, which read this with earlier heads, in "
                "other bits or with a smaller budget. Add --reread to read it anew."
            )
        return earlier

    def _with_own_budget(self, job: Job, wanted: ReadSettings, on_progress: OnProgress) -> Job:
        """The job with the model's own budget where a long document has more by default."""
        own = own_budget(wanted, job.model)
        if wanted.sized or job.settings.budget_tokens == own:
            return job
        settings = replace(wanted, budget_tokens=own)
        return self._job(job.document, job.pages, settings, on_progress)

    def _plan(self, job: Job) -> Plan:
        return make_plan(job, self.paths)

    def _session(
        self,
        job: Job,
        reread: bool,
        on_progress: OnProgress,
        on_session: Callable[[str], None] | None,
        stop: Callable[[], bool] | None,
    ) -> OpenSession:
        """Restore or read, and hold the result among the open sessions."""
        from engine.files import locked

        session_id = job.session_id
        after_model = rss_bytes()
        # Two programs may be given the same document; the second waits and finds it read.
        with locked(self.paths.snapshots, session_id, on_wait=self._waiter(job, stop)):
            before_read = after_model
            restored = None if reread else restore(job, self.library)
            if restored is None:
                plan = self._plan(job)
                check_length(plan)
                check_fits(plan)
                self.announce(cost_line(plan))
                if plan.lowered:
                    self.announce(plan.lowered)
                before_read = rss_bytes()
                with self._sharing(job.model) as look:
                    cache, report = read_document(
                        job,
                        self.library,
                        on_progress=both(on_progress, look),
                        on_session=on_session,
                        stop=stop,
                        announce=self.announce,
                    )
            else:
                cache, report = restored
                if on_session is not None:
                    on_session(session_id)
        record = self.library.session(session_id)
        assert record.state == SESSION_READY
        self.library.touch_session(session_id)
        session = OpenSession(
            record, job.document, job.model, job.layout, cache, restored is not None, report
        )
        session.model_load_s = job.model.load_s
        session.memory = {
            "after_model_rss_bytes": after_model,
            "before_read_rss_bytes": before_read,
            "peak_rss_bytes": peak_rss_bytes(),
        }
        self._open.hold(session)
        return session

    def _waiter(self, job: Job, stop: Callable[[], bool] | None) -> Callable[[], None]:
        """What to do for as long as another program holds the session: say so, and heed a stop."""
        from engine.errors import PrefillStopped

        said: list[str] = []

        def wait() -> None:
            if not said:
                said.append("Another program is reading this document; waiting for it.")
                self.announce(said[0])
            if stop is not None and stop():
                raise PrefillStopped(None, 0, len(job.prefix.token_ids))

        return wait

    def describe(self) -> dict[str, Any]:
        """The loaded model in plain values; empty before the first was loaded."""
        return self._model.describe()
