"""The page: Gradio components, and how a picture is laid on them.

No event does any work. A click changes the tab's seat, a timer looks at the worker; both answer
with the same list of outputs, in which only what changed is sent. Answers are numbered, and every
event says which was laid on last: where one was lost or overtaken, everything is sent again. A
timer asks again only when its last answer has been laid on, so that one which never is would end
it; a second, slow timer keeps the page going then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from app.desk import cards
from app.desk.picture import Picture
from app.desk.port import DeskWorker
from app.desk.seat import Seat, Seats
from app.desk.uploads import Uploads

BUSY_TICK_S = 0.2
IDLE_TICK_S = 1.5
SPARE_TICK_S = 5.0
QUIET_S = 2.5  # unasked for so long, a tab has lost its timer
FILE_TYPES = [
    ".pdf", ".epub", ".mobi", ".azw3", ".fb2", ".xps", ".oxps", ".docx",
    ".txt", ".md", ".markdown", ".html", ".htm", ".xhtml",
]  # fmt: skip
LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
_REMEMBER = "(place) => { window.longread?.remember(place); }"
_RECALL = "() => [sessionStorage.getItem('longread.place') || '']"

Updates = dict[Any, Any]


class Page:
    """Builds the Blocks; `blocks` is what the server mounts."""

    def __init__(
        self, worker: DeskWorker, uploads: Uploads, *, version: str, chip_class: str = "lr-chip"
    ) -> None:
        self.seats = Seats(lambda: Seat(worker, uploads, chip_class, lambda: self.seats.all()))
        self.version = version
        self.watched: list[Any] = []
        with gr.Blocks(
            title="Longread", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
        ) as self.blocks:
            self.place = gr.Textbox(visible="hidden", elem_id="place", show_label=False)
            self.seen = gr.Textbox(visible="hidden", elem_id="seen", show_label=False)
            self.timer = gr.Timer(BUSY_TICK_S)
            self.spare_timer = gr.Timer(SPARE_TICK_S)
            with gr.Row(elem_id="desk", equal_height=False):
                with gr.Column(elem_id="side", scale=0, min_width=280):
                    self._side()
                with gr.Column(elem_id="main", scale=1, min_width=320):
                    self.notice = gr.HTML(elem_id="notice")
                    self._document()
                    self._chat()
            gr.HTML(cards.footer(version), elem_id="footer")
            self._watch()
            self._connect()

    # Layout

    def _side(self) -> None:
        gr.HTML('<h1 class="lr-brand">Longread</h1>', elem_id="brand")
        self.new = gr.Button("Read a document", elem_id="new", variant="secondary")
        with gr.Column(visible=False, elem_id="strip") as self.strip_group:
            self.strip = gr.HTML()
            self.show_reading = gr.Button("Show", size="sm", elem_id="show-reading")
        self.sessions = gr.Radio(choices=[], label="Your documents", elem_id="sessions")
        self.no_sessions = gr.HTML(
            '<p class="lr-empty">Documents you have read will be listed here. '
            "A document is read once; every later question starts from what was kept.</p>"
        )

    def _document(self) -> None:
        with gr.Column(elem_id="drop", visible=False) as self.drop_group:
            gr.HTML(
                cards.heading(
                    "Drop in a long document",
                    "A PDF, a book, a Word file or plain text. It is read once, on this machine; "
                    "then ask whatever you like.",
                )
            )
            self.file = gr.File(
                label="Document",
                show_label=False,
                file_types=FILE_TYPES,
                file_count="single",
                elem_id="file",
                height=240,
            )
        with gr.Column(elem_id="document", visible=False) as self.document_group:
            self.card = gr.HTML(elem_id="card")
            with gr.Column(elem_id="locked", visible=False) as self.password_group:
                self.password = gr.Textbox(
                    label="Password of the document",
                    type="password",
                    elem_id="password",
                    max_lines=1,
                    html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
                )
                self.unlock = gr.Button("Open", variant="primary", elem_id="unlock")
            with gr.Column(visible=False, elem_id="planned") as self.plan_group:
                with gr.Row(elem_id="range"):
                    self.first = gr.Textbox(label="From page", elem_id="first-page", max_lines=1)
                    self.last = gr.Textbox(label="To page", elem_id="last-page", max_lines=1)
                    self.replan = gr.Button("Count again", elem_id="replan", size="sm")
                with gr.Row(elem_classes="lr-actions"):
                    self.read = gr.Button("Read", variant="primary", elem_id="read")
                    self.other = gr.Button("Choose another file", elem_id="other")
            self.cancel = gr.Button("Cancel", elem_id="cancel", visible=False)

    def _chat(self) -> None:
        with gr.Column(elem_id="chat", visible=False) as self.chat_group:
            with gr.Row(elem_id="chat-head"):
                self.head = gr.HTML(elem_id="head")
                self.resume = gr.Button("Continue reading", elem_id="resume", size="sm")
                self.ask_delete = gr.Button("Delete\u2026", elem_id="ask-delete", size="sm")
            with gr.Row(elem_id="confirm", visible=False) as self.confirm_group:
                gr.HTML(
                    '<p role="alertdialog">Delete this document, what was kept of it and the '
                    "conversation? The file you dropped in stays where it is.</p>"
                )
                self.delete = gr.Button("Delete", variant="stop", elem_id="delete", size="sm")
                self.keep = gr.Button("Keep", elem_id="keep", size="sm")
            self.chatbot = gr.Chatbot(
                elem_id="messages",
                show_label=False,
                label="Conversation",
                container=False,
                height=None,
                buttons=["copy", "copy_all"],
                latex_delimiters=LATEX,
                sanitize_html=True,
                allow_tags=False,
                feedback_options=None,
                layout="panel",
                placeholder='<p class="lr-empty">Ask the first question about this document.</p>',
            )
            with gr.Row(elem_id="ask-row", equal_height=True):
                self.question = gr.Textbox(
                    label="Your question",
                    placeholder="Ask about this document",
                    elem_id="question",
                    lines=1,
                    max_lines=6,
                    scale=1,
                )
                self.ask = gr.Button("Ask", variant="primary", elem_id="ask", scale=0, min_width=96)
                self.stop = gr.Button("Stop", elem_id="stop", scale=0, min_width=96, visible=False)

    # Events

    def _watch(self) -> None:
        """Outputs of every event: whatever a picture can change, and what a click clears."""
        self.watched = [
            self.place, self.seen, self.timer, self.notice, self.sessions, self.no_sessions,
            self.strip, self.strip_group, self.drop_group, self.file,
            self.document_group, self.card, self.password_group, self.password,
            self.plan_group, self.first, self.last, self.replan, self.read, self.cancel,
            self.chat_group, self.head, self.resume, self.ask_delete, self.confirm_group,
            self.chatbot, self.question, self.ask, self.stop,
        ]  # fmt: skip

    def _connect(self) -> None:
        on = self._on
        on(self.blocks.load, Seat.load, [self.place], js=_RECALL)
        on(self.file.upload, Seat.drop, [self.file], clears=[self.file])
        on(self.unlock.click, Seat.unlock, [self.password], clears=[self.password])
        on(self.password.submit, Seat.unlock, [self.password], clears=[self.password])
        pages = [self.first, self.last]
        on(self.replan.click, Seat.replan, pages)
        on(self.first.submit, Seat.replan, pages)
        on(self.last.submit, Seat.replan, pages)
        on(self.read.click, Seat.read, pages)
        on(self.cancel.click, Seat.cancel)
        on(self.new.click, Seat.home)
        on(self.other.click, Seat.home)
        on(self.show_reading.click, Seat.show_reading)
        on(self.sessions.input, Seat.open, [self.sessions])
        on(self.resume.click, Seat.resume)
        on(self.ask_delete.click, Seat.ask_delete)
        on(self.keep.click, Seat.keep)
        on(self.delete.click, Seat.delete)
        on(self.question.submit, Seat.ask, [self.question], clears=[self.question])
        on(self.ask.click, Seat.ask, [self.question], clears=[self.question])
        on(self.stop.click, Seat.stop)
        on(self.timer.tick, None)
        on(self.spare_timer.tick, None, spare=True)
        self.place.change(
            None, [self.place], None, js=_REMEMBER, queue=False, show_progress="hidden"
        )

    def _on(
        self,
        event: Callable[..., Any],
        action: Callable[..., None] | None,
        inputs: list[Any] | None = None,
        *,
        clears: list[Any] | None = None,
        js: str | None = None,
        spare: bool = False,
    ) -> None:
        """Connect an event to an action of the tab's seat (None: only look).

        spare  look only if nobody has for a while
        """

        is_load = action is Seat.load

        def run(request: gr.Request, *given: Any) -> Updates:
            seat = self.seats.of(request.session_hash)
            with seat.lock:
                if spare and time.monotonic() < seat.looked_at_s + QUIET_S:
                    return {self.timer: gr.skip()}
                seat.looked_at_s = time.monotonic()
                seen, given = (0, given) if is_load else (_number(given[0]), given[1:])
                if seen != seat.n_sent:
                    seat.shown = None
                if action is None:
                    return self._look(seat, seen)
                seat.act(action.__get__(seat), *given)
                updates = self._look(seat, seen)
                if not seat.note:
                    updates.update(
                        {component: _value(component, None) for component in clears or ()}
                    )
                return updates

        event(
            run,
            inputs or [] if is_load else [self.seen, *(inputs or [])],
            self.watched,
            js=js,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="once" if action is None else "multiple",
        )

    def _look(self, seat: Seat, seen: int) -> Updates:
        """Updates for what differs from the picture that was sent last, numbered.

        seen  the number of the answer that the tab laid on last
        """
        new, old = seat.look(), seat.shown
        if old == new:
            return {self.timer: gr.skip()}
        updates: Updates = {}
        for fields, make in self._mapping():
            if old is None or any(getattr(old, f) != getattr(new, f) for f in fields):
                updates.update(make(new))
        # Pages that arrived are not sent again: somebody may be typing others over them.
        number, pages = seat.pages_sent
        if pages == (new.place, new.pages, new.page_word) and seen >= number:
            for field in (self.first, self.last):
                updates.pop(field, None)
        elif self.first in updates:
            seat.pages_sent = seat.n_sent + 1, (new.place, new.pages, new.page_word)
        seat.shown = new
        seat.n_sent += 1
        updates[self.seen] = str(seat.n_sent)
        return updates

    def _mapping(self) -> tuple[tuple[tuple[str, ...], Callable[[Picture], Updates]], ...]:
        """Which fields of the picture show on which components."""
        return (
            (("place",), lambda p: {self.place: p.place}),
            (("busy",), lambda p: {self.timer: gr.Timer(BUSY_TICK_S if p.busy else IDLE_TICK_S)}),
            (("notice",), lambda p: {self.notice: gr.HTML(p.notice, visible=bool(p.notice))}),
            (("sessions", "selected"), self._show_sessions),
            (
                ("strip",),
                lambda p: {
                    self.strip: p.strip,
                    self.strip_group: gr.Column(visible=bool(p.strip)),
                },
            ),
            (("mode",), self._show_mode),
            (("card",), lambda p: {self.card: p.card}),
            (("pages", "page_word", "place"), self._show_pages),
            (
                ("can_read", "read_label"),
                lambda p: {self.read: gr.Button(p.read_label, interactive=p.can_read)},
            ),
            (("head",), lambda p: {self.head: p.head}),
            (("can_resume",), lambda p: {self.resume: gr.Button(visible=p.can_resume)}),
            (("confirm",), lambda p: {self.confirm_group: gr.Row(visible=p.confirm)}),
            (("messages",), lambda p: {self.chatbot: p.messages}),
            (
                ("answering", "can_ask"),
                lambda p: {
                    self.ask: gr.Button(interactive=p.can_ask, visible=not p.answering),
                    self.stop: gr.Button(visible=p.answering),
                },
            ),
        )

    def _show_sessions(self, picture: Picture) -> Updates:
        return {
            self.sessions: gr.Radio(
                choices=list(picture.sessions),
                value=picture.selected,
                visible=bool(picture.sessions),
            ),
            self.no_sessions: gr.HTML(visible=not picture.sessions),
        }

    def _show_mode(self, picture: Picture) -> Updates:
        mode = picture.mode
        return {
            self.drop_group: gr.Column(visible=mode == "drop"),
            self.document_group: gr.Column(
                visible=mode in ("opening", "plan", "password", "reading")
            ),
            self.password_group: gr.Column(visible=mode == "password"),
            self.plan_group: gr.Column(visible=mode == "plan"),
            self.cancel: gr.Button(
                "Choose another file" if mode == "password" else "Cancel",
                visible=mode in ("opening", "reading", "password"),
            ),
            self.chat_group: gr.Column(visible=mode == "chat"),
        }

    def _show_pages(self, picture: Picture) -> Updates:
        if picture.pages is None:
            return {}
        first, last = picture.pages
        word = picture.page_word
        return {
            self.first: gr.Textbox(str(first), label=f"From {word}"),
            self.last: gr.Textbox(str(last), label=f"To {word}"),
        }


def _number(seen: str | None) -> int:
    """The number in the hidden field; 0 before the first answer."""
    return int(seen) if seen and seen.isdecimal() else 0


def _value(component: Any, value: Any) -> Any:
    """An update that sets a component's value alone."""
    return gr.update(value=value if not isinstance(component, gr.Textbox) else "")


def page_style(chip_class: str) -> str:
    """The style sheet, with this launch's class for chips that an answer cannot imitate."""
    text = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return text.replace("lr-chip", chip_class)


def page_head() -> str:
    """The page's script, as a tag for the document's head."""
    text = (Path(__file__).parent / "desk.js").read_text(encoding="utf-8")
    return f"<script>{text}</script>"


def page_theme() -> gr.themes.Base:
    """Paper and ink with one green; system fonts, so nothing is fetched."""
    paper = gr.themes.Color(
        c50="#fbfaf7", c100="#f5f3ee", c200="#e9e6de", c300="#d8d4c9", c400="#a8a396",
        c500="#7b776c", c600="#5c5950", c700="#3c3b37", c800="#272725", c900="#1d1d1c",
        c950="#161616", name="paper",
    )  # fmt: skip
    green = gr.themes.Color(
        c50="#eef6f2", c100="#d9ebe2", c200="#b4d7c7", c300="#84bba4", c400="#559c82",
        c500="#37806a", c600="#286654", c700="#215244", c800="#1b4238", c900="#16362e",
        c950="#0b201b", name="green",
    )  # fmt: skip
    theme = gr.themes.Base(
        primary_hue=green,
        secondary_hue=green,
        neutral_hue=paper,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Cascadia Mono", "Consolas", "monospace"],
        radius_size="md",
        text_size="md",
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_800",
        body_text_color_dark="*neutral_200",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_700",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_width="1px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover_dark="*primary_400",
        button_primary_text_color="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
    )
