"""Documents on disk: the original file and its parsed text under documents/SHA256/."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import psutil

from app.library import Library
from app.paths import NO_ROOM, DataPaths

if TYPE_CHECKING:
    from ingest import Document, ParseLimits

PARSED_NAME = "document.json"
LOOK_EVERY_S = 0.2
_BLOCK_BYTES = 4 * 1024 * 1024
_TEMPORARY = re.compile(r"\.tmp-(\d+)$|\.(\d+)\.tmp$")


@dataclass(frozen=True)
class StoredDocument:
    """A parsed document, its original in the data directory, and the seconds parsing took.

    kept_ns  when it was kept, as its folder says; whoever opens it later changes that
    """

    document: Document
    original: Path
    parse_s: float
    parsed_now: bool
    kept_ns: int


def keep_document(
    library: Library,
    path: Path,
    password: str | None = None,
    on_parse: Callable[[], None] | None = None,
    while_parsing: Callable[[], None] | None = None,
) -> StoredDocument:
    """Copy a file into the data directory and parse it; what is there already is used again.

    A document that needs a password is parsed anew each time, so that the password is asked for
    each time. Raises ingest.IngestError or engine.NotEnoughDisk; then nothing
    stays behind.

    on_parse       called before the file is parsed
    while_parsing  called at once and every LOOK_EVERY_S meanwhile; an exception that it raises ends
                   the parsing
    """
    from engine.files import need_disk
    from ingest import ParseLimits
    from ingest.errors import DocumentMissing

    started = time.perf_counter()
    paths = library.paths
    work = paths.documents / f"incoming-{time.time_ns():x}.tmp-{os.getpid()}"
    try:
        try:
            limits = ParseLimits()
            need_disk(paths.documents, 2 * _checked_size(path, limits), "Keeping the document")
            sha256, copy = _copy(path, work, limits.max_file_bytes)
        except DocumentMissing:
            raise
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            raise DocumentMissing(
                f"{path} cannot be opened: {error.strerror}.", "Check its name and folder."
            ) from error
        known = _known(library, sha256)
        if known is not None:
            return _stored(paths, known, started, parsed_now=False)
        if on_parse is not None:
            on_parse()
        document = _titled(_parsed(copy, password, while_parsing), copy, path)
        needs_password = password is not None and _needs_password(copy)
        (work / PARSED_NAME).write_text(document.to_json(), encoding="utf-8")
        library.add_document(document, _shown_name(path), needs_password=needs_password)
        _publish(work, paths.document(sha256))
        return _stored(paths, document, started, parsed_now=True)
    finally:
        if work.exists():
            shutil.rmtree(work)


def stored_document(paths: DataPaths, sha256: str) -> Document:
    """The parsed document of a session. Raises ingest.BrokenDocument if its file is damaged."""
    from ingest import Document
    from ingest.errors import BrokenDocument

    file = paths.document(sha256) / PARSED_NAME
    try:
        return Document.from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenDocument(
            f"The stored text {file} cannot be read ({type(error).__name__}).",
            "Open the original file again.",
        ) from error


def original_file(paths: DataPaths, sha256: str) -> Path:
    """The copy of the original. Raises ingest.DocumentMissing."""
    from ingest.errors import DocumentMissing

    folder = paths.document(sha256) / "original"
    if folder.is_dir():
        for file in sorted(folder.iterdir()):
            return file
    raise DocumentMissing(f"The original of document {sha256[:12]} is gone.", "Open it again.")


def sweep(paths: DataPaths) -> list[str]:
    """Remove temporary files and folders that dead processes left; returns their names."""
    removed = []
    for folder in (paths.documents, paths.snapshots, paths.root):
        for entry in folder.iterdir():
            match = _TEMPORARY.search(entry.name)
            if match is None or psutil.pid_exists(int(match.group(1) or match.group(2))):
                continue
            # Another program may be sweeping at the same time.
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
            removed.append(entry.name)
    return removed


def safe_name(name: str) -> str:
    """A file name that is harmless in every file system, with its suffix."""
    path = PurePosixPath(name.replace("\\", "/"))
    clean = re.sub(r"[^\w\-. ()]", "_", path.stem).strip(" .")[:100] or "document"
    return clean + re.sub(r"[^\w.]", "", path.suffix)[:16]


def _shown_name(path: Path) -> str:
    """The file's name as text; bytes of it that are none become question marks."""
    return path.name.encode("utf-8", "replace").decode()


def _known(library: Library, sha256: str) -> Document | None:
    """A document parsed by the present parser and free of a password, else None."""
    from ingest.assemble import PARSER_VERSION
    from ingest.errors import IngestError

    record = library.document(sha256)
    if record is None or record.needs_password:
        return None
    if record.parser_version.partition("+")[0] != PARSER_VERSION:
        return None
    try:
        original_file(library.paths, sha256)
        return stored_document(library.paths, sha256)
    except IngestError:
        return None  # the stored text is damaged: the file at hand is parsed again


def _needs_password(path: Path) -> bool:
    """Whether a file that was opened with a password does not open without one."""
    from ingest import open_document
    from ingest.errors import IngestError, PasswordRequired

    try:
        open_document(path, None, pages=(1, 1))
    except IngestError as error:
        return isinstance(error, PasswordRequired)
    return False


def _checked_size(path: Path, limits: ParseLimits) -> int:
    """Bytes of a file that may be a document, before it is copied; 0 of a stream.

    Raises what ingest.detect.check_file raises.
    """
    from ingest.detect import check_file

    return 0 if _is_stream(path) else check_file(path, limits)


def _is_stream(path: Path) -> bool:
    """Whether this is a pipe into the program, as in `... | ask /dev/stdin`; none with a name."""
    ours = str(path) == "/dev/stdin" or path.parent == Path("/dev/fd")
    return ours and stat.S_ISFIFO(path.stat().st_mode)


def _copy(path: Path, work: Path, most: int) -> tuple[str, Path]:
    """SHA-256 and place of a copy. Raises DocumentTooLarge beyond `most` bytes."""
    from ingest.errors import DocumentTooLarge

    digest, copied = hashlib.sha256(), 0
    (work / "original").mkdir(parents=True)
    target = work / "original" / safe_name(path.name)
    with path.open("rb") as source, target.open("wb") as copy:
        while block := source.read(_BLOCK_BYTES):
            copied += len(block)
            if copied > most:
                raise DocumentTooLarge(
                    f"The file has more than {most / 2**20:,.0f} MiB.",
                    "Split it, or save it without pictures.",
                )
            digest.update(block)
            copy.write(block)
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest(), target


def _parsed(copy: Path, password: str | None, while_parsing: Callable[[], None] | None) -> Document:
    """The whole document: pages are chosen of it later. Raises what open_document raises."""
    from ingest import open_document
    from ingest.errors import DocumentTooLarge

    with ThreadPoolExecutor(1, "parsing") as pool:
        parsing = pool.submit(open_document, copy, password)
        try:
            look = while_parsing or (lambda: None)
            look()  # whatever was asked before a short file is parsed counts, too
            while not wait([parsing], LOOK_EVERY_S).done:
                look()
        except BaseException:
            _end_parsing(parsing)
            raise
    try:
        return parsing.result()
    except DocumentTooLarge as error:
        next_step = "Split the file, and open its parts one by one."
        raise DocumentTooLarge(error.cause, next_step) from error


def _end_parsing(parsing: Future[Document]) -> None:
    """Kill the process that parses for this one, whenever it has come up."""
    from ingest.guard import WORKER_COMMAND

    command = list(WORKER_COMMAND)
    while not wait([parsing], LOOK_EVERY_S / 10).done:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if child.cmdline()[: len(command)] == command:
                    child.kill()


def _titled(document: Document, copy: Path, path: Path) -> Document:
    """The document, whose title is the file's own name where the parser took the copy's."""
    if document.title != copy.stem:
        return document
    return replace(document, title=Path(_shown_name(path)).stem)


def _publish(work: Path, place: Path) -> None:
    """Put the finished folder in its place; an older parse there is replaced."""
    if place.exists():
        # Same content, so the original stays; only the parsed text is exchanged.
        os.replace(work / PARSED_NAME, place / PARSED_NAME)
        if not (place / "original").exists():
            os.replace(work / "original", place / "original")
    else:
        os.replace(work, place)


def _stored(
    paths: DataPaths, document: Document, started: float, *, parsed_now: bool
) -> StoredDocument:
    """The document as it lies in its place; its folder remembers that it was opened now."""
    folder = paths.document(document.sha256)
    os.utime(folder)
    return StoredDocument(
        document,
        original_file(paths, document.sha256),
        time.perf_counter() - started,
        parsed_now,
        folder.stat().st_mtime_ns,
    )
