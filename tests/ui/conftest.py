"""A real Chromium before a desk with a fake worker; each tab's requests and errors are recorded."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.ui.fake_worker import FakeWorker

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
TIMEOUT_S = 40  # a busy machine is slow, not broken
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge")


def find_chromium() -> str | None:
    """Path of an installed Chromium, or None."""
    if Path("/usr/bin/chromium").exists():
        return "/usr/bin/chromium"
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        pytest.skip("needs Chromium (or Chrome, or Edge); none was found on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


class Running:
    """A desk in a thread; it can be stopped and started again on the same data directory."""

    def __init__(self, data_dir: Path, make_worker: Callable[[], Any]) -> None:
        self.data_dir = data_dir
        self.make_worker = make_worker
        self.start()

    def start(self) -> None:
        from app.desk.server import Desk

        self.worker = self.make_worker()
        self.desk = Desk(self.worker, self.data_dir)
        self.thread = threading.Thread(target=self.desk.run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.desk.stop()
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server did not stop"
        self.worker.close()

    @property
    def url(self) -> str:
        return self.desk.url

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.desk.port}"


class Tab:
    """One page; `check` fails on console errors and on requests that leave 127.0.0.1."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("response", self._answered)
        page.on("console", self._said)

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.errors.append(f"{response.status} {response.url}")

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def drop(self, path: Path) -> None:
        self.page.wait_for_selector("#file input[type=file]", state="attached")
        self.page.set_input_files("#file input[type=file]", str(path))

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def ask(self, question: str) -> None:
        self.page.fill("#question textarea", question)
        self.page.press("#question textarea", "Enter")

    def check(self) -> None:
        local = ("http://127.0.0.1:", "data:", "blob:")
        assert [url for url in self.requests if not url.startswith(local)] == []
        assert self.errors == []


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("desk")
    running = Running(folder, lambda: FakeWorker(folder))
    yield running
    running.stop()


@pytest.fixture
def running(desk: Running) -> Running:
    """The module's desk with an empty library; building one for each test would take longer."""
    desk.worker.reset()
    return desk


@pytest.fixture
def tab(browser: Browser, running: Running) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    context.set_default_timeout(TIMEOUT_S * 1000)
    tab = Tab(context.new_page())
    tab.page.goto(running.url)
    tab.page.wait_for_selector("#brand")
    yield tab
    context.close()
    tab.check()


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    file = tmp_path / "voyage.pdf"
    file.write_bytes(b"%PDF-1.4 a fake, told apart by its bytes")
    return file
