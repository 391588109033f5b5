"""The whole way with the real worker, parser and a small model, in a real browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.ui.conftest import Running, Tab

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.ui, pytest.mark.weights, pytest.mark.timeout(600)]

MODEL = "smollm2-135m"
WAIT_MS = 240_000


class _Owned:
    """The real worker, which closes its library with itself."""

    def __init__(self, data_dir: Path, models_dir: Path) -> None:
        from app.library import Library
        from app.paths import DataPaths
        from app.service import Reader
        from app.settings import ReadSettings
        from app.worker import Worker

        self.library = Library(DataPaths(data_dir, models_dir))
        settings = ReadSettings(model=MODEL, budget_tokens=512, chunk_tokens=256)
        self.worker = Worker(Reader(self.library, settings))

    def submit_question(self, session_id: str, text: str) -> str:
        """Short answers: how long they may be is not what is tested here."""
        from engine.generate import Sampling

        return self.worker.submit_question(session_id, text, Sampling(max_new_tokens=24))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.worker, name)

    def close(self) -> None:
        self.worker.close()
        self.library.close()


def _book(folder: Path) -> Path:
    import pymupdf

    document = pymupdf.open()
    for number in range(1, 5):
        page = document.new_page()
        lines = [f"Chapter {number}. The log of the ship Pequod, day {number}."]
        lines += [f"Line {n}: the wind came from the west and we sailed on." for n in range(30)]
        if number == 3:
            lines.append("On this day the captain hid the golden key under the third mast.")
        for n, line in enumerate(lines):
            page.insert_text((60, 60 + 20 * n), line, fontsize=11)
    file = folder / "log of the ship.pdf"
    document.save(file, encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="sesame", owner_pw="x")
    document.close()
    return file


@pytest.fixture
def real(tmp_path: Path, models_dir: Path) -> Iterator[Running]:
    data_dir = tmp_path / "data"
    running = Running(data_dir, lambda: _Owned(data_dir, models_dir))
    yield running
    running.stop()


def answered(real: Running, tab: Tab, n_answers: int) -> list[Any]:
    """The conversation once so many answers are done and the page is ready for the next one."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while True:
        messages: list[Any] = real.worker.messages(real.worker.sessions()[0].id)
        done = [m for m in messages if m.role == "assistant" and m.state != "pending"]
        if len(done) == n_answers and tab.page.is_visible("#ask"):
            return messages
        assert time.monotonic() < deadline, "no answer"
        time.sleep(0.1)


def test_a_locked_pdf_is_read_asked_and_reopened(
    real: Running, browser: Browser, tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    context.set_default_timeout(WAIT_MS)
    tab = Tab(context.new_page())
    page = tab.page
    page.goto(real.url)
    tab.drop(_book(tmp_path))
    page.wait_for_selector("#password input:visible")
    page.fill("#password input", "sesame")
    page.press("#password input", "Enter")
    page.wait_for_selector("#read:visible")
    assert "4" in tab.text("#card") and MODEL in tab.text("#card").lower()
    page.click("#read")
    page.wait_for_selector("#question textarea:visible")
    assert real.worker.sessions()[0].state == "ready"
    tab.ask("Where did the captain hide the golden key?")
    (asked, answer) = answered(real, tab, 1)
    assert asked.text.startswith("Where did") and answer.state == "done" and answer.text
    page.wait_for_selector("#messages >> text=tokens per second")

    page.goto("about:blank")
    real.stop()
    real.start()
    page.goto(real.url)
    page.click("#sessions label")
    page.wait_for_selector("#messages .bot-row")
    tab.ask("And what came from the west?")
    assert len(answered(real, tab, 2)) == 4
    assert not list((real.data_dir / "uploads").rglob("*.pdf"))
    context.close()
    tab.check()
