"""What the application itself refuses, as one small tree.

AppError                cause and next_step are for the user; exit_code for the command line
|- DocumentTooLong      more tokens than the limit; carries the page range that fits
|- BadPageRange         a page range outside the document
|- NoSuchSession        no session of that name in the library
|- SessionNotReady      known, but not read to the end or damaged
|- SessionBusy          another program is reading it just now
|- OpeningStopped       a document's opening or counting was cancelled
|- BadTarget            a file that cannot be written to where it was asked for
|- PortableFileBad      a session file that cannot be imported, with the reason
|- DataDirUnusable      the folder for everything cannot be made or found
|- PortUnavailable      the desk cannot listen where it was told to
`- DeskRunning          another process serves this data directory
"""

from __future__ import annotations


class AppError(Exception):
    """A refusal with its cause and the next step, both plain sentences."""

    exit_code = 1

    def __init__(self, cause: str, next_step: str = "") -> None:
        super().__init__(f"{cause} {next_step}".strip())
        self.cause = cause
        self.next_step = next_step


class DocumentTooLong(AppError):
    """The document has more tokens than can be read; `pages` is the range that fits, if any."""

    exit_code = 3

    def __init__(self, cause: str, next_step: str, pages: tuple[int, int] | None) -> None:
        super().__init__(cause, next_step)
        self.pages = pages


class BadPageRange(AppError):
    """The page range does not lie inside the document."""

    exit_code = 2


class NoSuchSession(AppError):
    """The library has no session of that name."""

    exit_code = 2


class SessionNotReady(AppError):
    """The session was not read to the end, or its snapshot is damaged."""

    exit_code = 2


class SessionBusy(AppError):
    """Another program holds the session's lock: it reads the document, or takes the session in."""

    exit_code = 2


class OpeningStopped(AppError):
    """Whoever opened a document asked for an end before the reading began."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("Opening the document was stopped.")


class BadTarget(AppError):
    """A file cannot be written under the name that was asked for."""

    exit_code = 2


class PortableFileBad(AppError):
    """A portable session file is damaged, hostile or of another version."""

    exit_code = 3


class DataDirUnusable(AppError):
    """The data directory, or that of the models, cannot be made or found."""

    exit_code = 2


class PortUnavailable(AppError):
    """The port is taken, or not ours to take."""

    exit_code = 2


class DeskRunning(AppError):
    """Another process serves this data directory; `url` opens it, if it could be asked."""

    exit_code = 2

    def __init__(self, url: str | None) -> None:
        super().__init__(
            "Another desk holds this data directory, and does not answer.",
            "End that program, or choose another folder with --data-dir.",
        )
        self.url = url
