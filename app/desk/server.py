"""Serving the desk: first a socket on 127.0.0.1, then the guarded page, then the window."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from app.desk.browser import open_window
from app.desk.guard import TOKEN_PARAMETER, Guard
from app.desk.instance import DeskLock, running_desk
from app.desk.port import DeskWorker
from app.desk.uploads import Uploads
from app.errors import DeskRunning, PortUnavailable
from ingest.limits import ParseLimits

if TYPE_CHECKING:
    import uvicorn

HOST = "127.0.0.1"
MAX_UPLOAD_BYTES = ParseLimits().max_file_bytes
SHUTDOWN_WAIT_S = 2
# Settings of Gradio that a shell may carry and that would open or slow the desk.
CLEARED = (
    "GRADIO_SHARE",
    "GRADIO_ALLOWED_PATHS",
    "GRADIO_SERVER_NAME",
    "GRADIO_SERVER_PORT",
    "GRADIO_MCP_SERVER",
    "GRADIO_VIBE_MODE",
    "GRADIO_ROOT_PATH",
    "GRADIO_DEBUG",
    "GRADIO_CACHE_EXAMPLES",
    "GRADIO_RUN_HISTORY",
    "GRADIO_SSR_MODE",
    "GRADIO_LOCAL_DEV_MODE",
)
NO_PROXY_HOSTS = "localhost,127.0.0.1,::1"


def set_environment(data_dir: Path) -> None:
    """What must hold before Gradio is imported: no telemetry, no proxy, uploads in our folder."""
    for name in CLEARED:
        os.environ.pop(name, None)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(Uploads(data_dir).folder)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name, "")
        if "127.0.0.1" not in known:
            os.environ[name] = f"{known},{NO_PROXY_HOSTS}" if known else NO_PROXY_HOSTS


def bind(port: int = 0) -> socket.socket:
    """A listening socket on 127.0.0.1; port 0 takes any free one. Raises PortUnavailable."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if sys.platform != "win32":  # there it would let a second program take the port over
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise PortUnavailable(
            f"Port {port} of {HOST} cannot be had: {str(error.strerror).lower()}.",
            "Choose another with --port, or leave it out and any free one is taken.",
        ) from error
    return listener


class Desk:
    """One running desk. Raises DeskRunning if the data directory has one already.

    The worker is used, not owned: whoever made it closes it.
    """

    def __init__(
        self, worker: DeskWorker, data_dir: Path, *, port: int = 0, token: str | None = None
    ) -> None:
        self._lock = DeskLock(data_dir)
        if not self._lock.take():
            raise DeskRunning(running_desk(data_dir))
        try:
            self._socket = bind(port)
        except PortUnavailable:
            self._lock.release()
            raise
        self.port: int = self._socket.getsockname()[1]
        token = token or secrets.token_urlsafe(24)
        self.url = f"http://{HOST}:{self.port}/?{TOKEN_PARAMETER}={token}"
        try:
            self._server = _server(worker, data_dir, self.port, token)
            self._lock.announce(self.url)
        except BaseException:
            self.close()
            raise

    def run(self) -> None:
        """Serve until `stop` or a signal; then the socket and the lock are free again."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.close()

    def stop(self) -> None:
        """Ask `run` to return; may be called from any thread."""
        self._server.should_exit = True

    def close(self) -> None:
        """Release what the constructor took; `run` does it too."""
        self._socket.close()
        self._lock.release()


def serve(
    worker: DeskWorker,
    *,
    port: int = 0,
    open_browser: bool = True,
    token: str | None = None,
    ready: Callable[[str], None] | None = None,
    data_dir: Path | None = None,
) -> None:
    """Serve the desk until Ctrl-C, and print its address (`ready` gets it instead, if given).

    If the data directory's desk already runs, its window is opened again and this returns.
    data_dir is the worker's own by default. The caller closes the worker, which saves what is
    being read.
    """
    folder = data_dir or _data_dir_of(worker)
    try:
        desk = Desk(worker, folder, port=port, token=token)
    except DeskRunning as running:
        if running.url is None:
            raise
        (ready or _tell_running)(running.url)
        if open_browser:
            open_window(running.url)
        return
    (ready or _tell)(desk.url)
    if open_browser:
        open_window(desk.url)
    with _terminated_like_interrupted():
        try:
            desk.run()
        except KeyboardInterrupt:
            return  # Ctrl-C is how the desk is meant to end


def _tell(url: str) -> None:
    sys.stdout.write(f"Longread is at {url}\nPress Ctrl-C to close it.\n")
    sys.stdout.flush()


def _tell_running(url: str) -> None:
    sys.stdout.write(f"Longread is already running at {url}\nOptions given now do not change it.\n")
    sys.stdout.flush()


def _data_dir_of(worker: Any) -> Path:
    root: Path = worker.library.paths.root
    return root


def _server(worker: DeskWorker, data_dir: Path, port: int, token: str) -> uvicorn.Server:
    """Everything between the socket and the worker."""
    set_environment(data_dir)
    uploads = Uploads(data_dir)
    uploads.clear()
    import uvicorn

    from app.desk.application import build_application

    application = build_application(worker, uploads, port=port, max_file_bytes=MAX_UPLOAD_BYTES)
    guard = Guard(application, port=port, token=token, max_body_bytes=MAX_UPLOAD_BYTES + (1 << 20))
    return uvicorn.Server(
        uvicorn.Config(
            guard,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=SHUTDOWN_WAIT_S,
        )
    )


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the desk as Ctrl-C does, so that the caller can still save what is read."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
