"""Opens the desk in a window of its own where a Chromium browser is installed, else in a tab."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import webbrowser
from pathlib import Path

_NAMES = ("msedge", "microsoft-edge", "google-chrome", "google-chrome-stable", "chrome")
_NAMES_LINUX = (*_NAMES, "chromium", "chromium-browser")
_WINDOWS_PATHS = (
    r"Microsoft\Edge\Application\msedge.exe",
    r"Google\Chrome\Application\chrome.exe",
)
_WINDOWS_ROOTS = ("PROGRAMFILES(X86)", "PROGRAMFILES", "LOCALAPPDATA")
_MAC_APPS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
# A browser that cannot start (no display, refused as root) ends within this time.
_STARTED_AFTER_S = 3.0


def app_mode_browser() -> str | None:
    """Program that can open a page as a window without tabs, or None."""
    if sys.platform == "win32":
        roots = [os.environ[name] for name in _WINDOWS_ROOTS if os.environ.get(name)]
        paths = [Path(root) / path for path in _WINDOWS_PATHS for root in roots]
        return next((str(path) for path in paths if path.is_file()), None)
    if sys.platform == "darwin":
        return next((path for path in _MAC_APPS if Path(path).is_file()), None)
    found = (shutil.which(name) for name in _NAMES_LINUX)
    return next((path for path in found if path), None)


def has_display() -> bool:
    """Whether a window can be shown at all."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_window(url: str) -> None:
    """Open the desk without making the caller wait; the printed URL remains as the way by hand."""
    threading.Thread(target=_open, args=(url,), name="open-window", daemon=True).start()


def _open(url: str) -> None:
    if not has_display():
        return
    program = app_mode_browser()
    if program is None or not _started(program, url):
        webbrowser.open(url)


def _started(program: str, url: str) -> bool:
    """Start an app-mode window; False if the program fails at once."""
    try:
        process = subprocess.Popen(
            [program, f"--app={url}", "--window-size=1280,900"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return False
    try:
        # A browser that was already running takes the URL over and ends with 0.
        return process.wait(timeout=_STARTED_AFTER_S) == 0
    except subprocess.TimeoutExpired:
        return True
