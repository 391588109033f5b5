"""The reader: opens documents into sessions and answers questions on them.

It owns the model and the open caches, and is used by one thread at a time; `worker.Worker` gives
the desk such a thread, a command is one by itself.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.answers import Answer, TokenText
from app.citations import Witness
from app.library import Library
from app.memory import peak_rss_bytes, rss_bytes
from app.plan import Plan, check_fits, check_length, cost_line, make_plan, page_range
from app.preparing import make_job, own_budget, serves
from app.progress import OnProgress
from app.prompts import Layout, Turn
from app.reading import Job, ReadReport, check_same, read_document, restore
from app.records import SESSION_READY, SessionRecord
from app.settings import ReadSettings
from app.sharing import ThreadShare, both
from app.store import StoredDocument, keep_document, stored_document
from app.unread import kept_if_read

if TYPE_CHECKING:
    from engine.cache import DocCache
    from engine.decoding import DecoderChoice
    from engine.generate import Sampling
    from engine.loader import LoadedModel
    from ingest import Document

OPEN_SESSIONS = 2


def _ignore_progress(stage: str, done: int, total: int) -> None:
    """OnProgress for callers that do not want to know."""


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


class Reader:
    """Parses, plans, reads, restores and asks. Not safe to use from two threads at once.

    announce gets one sentence whenever something happens that the user should know of: a reading
    that is resumed, a damaged checkpoint that is dropped. answer_weights: what answers are
    computed with (engine.decoding), packed as soon as a model is there; None: nobody means to ask,
    and they are packed if somebody does. Reading always uses the model's own weights.
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
        self.asks = answer_weights is not None
        self.answer_weights = answer_weights or "auto"
        self.paths = library.paths
        self.defaults = defaults or ReadSettings()
        self.device = device
        self.announce = announce or (lambda text: None)
        self._share = ThreadShare(self.announce)
        self._model: tuple[tuple[str, str], LoadedModel] | None = None
        self._decoder: Future[DecoderChoice] | None = None
        self._said = ""
        self._open: OrderedDict[str, OpenSession] = OrderedDict()

    # Opening

    def open(
        self,
        path: Path | str,
        *,
        password: str | None = None,
        pages: tuple[int, int] | None = None,
        settings: ReadSettings | None = None,
        reread: bool = False,
        on_progress: OnProgress = _ignore_progress,
        on_session: Callable[[str], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> OpenSession:
        """A session for this file: restored from disk if it was read before, else read now.

        A session that an earlier version read with other defaults (other heads of the same name,
        16 bits, a smaller budget) serves as well, and is announced.

        reread      read again even if there is a snapshot (or a damaged one)
        on_session  gets the session's id before the reading begins
        Raises      IngestError, EngineError, DocumentTooLong, BadPageRange; PrefillStopped after
                    the state so far was saved
        """
        stored = self._keep(Path(path), password, on_progress)
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
        on_progress: OnProgress = _ignore_progress,
        on_session: Callable[[str], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> OpenSession:
        """A session of the library by its id; one that was not read to the end is read on.

        Raises NoSuchSession, SnapshotMismatch if the model is not the one of then, and what `open`
        raises.
        """
        record = self.library.session(session_id)
        held = self._open.get(record.id)
        if held is not None and not reread:
            self._open.move_to_end(record.id)
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
        on_progress: OnProgress = _ignore_progress,
    ) -> Plan:
        """What reading this file would cost; nothing is read. Raises what parsing raises."""
        stored = self._keep(Path(path), password, on_progress)
        wanted = settings or self.defaults
        with kept_if_read(self.library, stored):
            job = self._job(stored.document, pages, wanted, on_progress)
            return self._plan(self._as_read_before(job, wanted, on_progress))

    def forget(self, session_id: str) -> None:
        """Drop a session from memory (not from the library)."""
        self._open.pop(session_id, None)

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
        from engine.generate import Sampling, generate
        from engine.speculation import Drafter

        started = time.perf_counter()
        sampling = sampling or Sampling()
        layout = session.layout
        turns = layout.fitting_history(history, history_tokens) if history_tokens else []
        tail = layout.tail(question, turns)
        text = TokenText(session.model.tokenizer, on_text)
        decoder = self.decoder(session.model).decoder
        with self._sharing(session.model) as look:
            made = generate(
                session.model,
                session.cache.view(),
                tail,
                sampling,
                on_token=both(text.add, look),
                stop=stop,
                decoder=decoder,
                drafter=Drafter(session.cache.token_ids, tail),
            )
        answer_text = text.finish()
        citations = session.witness(self.library).cite(answer_text, question)
        self.library.touch_session(session.record.id)
        return Answer(
            question=question,
            text=answer_text,
            citations=citations,
            ttft_s=made.ttft_s,
            decode_tok_s=made.decode_tok_s,
            new_tokens=len(made.token_ids),
            prefilled_tokens=made.prefilled_tokens,
            reused_tokens=made.reused_tokens,
            finish=made.finish,
            forwards=made.forwards,
            answer_s=time.perf_counter() - started,
        )

    def decoder(self, model: LoadedModel) -> DecoderChoice:
        """What computes the answers of a model; its weights are packed while documents are read.

        Raises InvalidSetting if the model cannot answer with the weights asked for.
        """
        if self._decoder is None:
            self._decoder = self._begin_packing(model)
        choice = self._decoder.result()
        if self._said != choice.reason:
            self._said = choice.reason
            self.announce(choice.reason)
        return choice

    def _begin_packing(self, model: LoadedModel) -> Future[DecoderChoice]:
        from engine.decoding import choose_decoder
        from engine.numeric import CACHE_NAME

        cache_file = self.paths.models / CACHE_NAME
        pool = ThreadPoolExecutor(1, "packing")
        found = pool.submit(choose_decoder, model, self.answer_weights, cache_file=cache_file)
        pool.shutdown(wait=False)
        return found

    # Inside

    def _sharing(self, model: LoadedModel) -> AbstractContextManager[Callable[[], None]]:
        """Where a model computes: on the CPU beside other programs (app.sharing)."""
        return self._share.computing() if model.device == "cpu" else nullcontext(lambda: None)

    def _keep(self, path: Path, password: str | None, on_progress: OnProgress) -> StoredDocument:
        return keep_document(
            self.library, path, password, on_parse=lambda: on_progress("parse", 0, 0)
        )

    def model(
        self,
        name: str | None,
        weights: str,
        on_progress: OnProgress = _ignore_progress,
        *,
        download: bool = True,
    ) -> LoadedModel:
        """The loaded model of this name; one is held at a time."""
        from engine.decoding import check_answer_format
        from engine.loader import load_model
        from engine.registry import default_model

        key = (name or default_model(), weights)
        if self._model is None or self._model[0] != key:
            self._model = self._decoder = None
            self._open.clear()  # their caches belong to the other model
            on_progress("load", 0, 0)
            loaded = load_model(
                key[0],
                models_dir=self.paths.models,
                weights=weights,
                device=self.device,
                download=download,
                on_progress=lambda done, total: on_progress("fetch", done, total),
                on_message=self.announce,
            )
            if self.asks:
                check_answer_format(self.answer_weights, loaded.device)
                if self.answer_weights != "captured":  # recording wants the card for itself
                    self._decoder = self._begin_packing(loaded)
            self._model = (key, loaded)
        return self._model[1]

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
        model = self.model(settings.model, settings.weights, on_progress, download=download)
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
        rate = self.library.last_rate(job.model.name)
        return make_plan(job, self.paths, rate)

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
        self._hold(session)
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

    def _hold(self, session: OpenSession) -> None:
        self._open[session.record.id] = session
        self._open.move_to_end(session.record.id)
        while len(self._open) > OPEN_SESSIONS:
            self._open.popitem(last=False)

    def describe(self) -> dict[str, Any]:
        """The loaded model in plain values; empty before the first was loaded."""
        if self._model is None:
            return {}
        loaded = self._model[1]
        return {"name": loaded.name, "weights": loaded.weights, "device": str(loaded.device)}
