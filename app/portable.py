"""A session as one file: made to be handed on, and therefore read as input from strangers.

A ZIP archive without compression:
    manifest.json     format, version, the session's row, the document's row, hashes of the rest
    messages.json     the conversation
    document.json     the parsed text
    original/NAME     the original file
    snapshot/...      the cache: safetensors and its own manifest

Nothing in it is executed or unpickled. Names, sizes and hashes are checked before anything is put
in its place; the cache is checked again, against the model and the text, when it is first opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from app.errors import PortableFileBad, SessionNotReady
from app.identity import ID_LETTERS, session_id_of
from app.library import Library
from app.records import SESSION_READY, MessageRecord, SessionRecord
from app.store import PARSED_NAME, original_file, safe_name

if TYPE_CHECKING:
    from ingest import Document

Record = TypeVar("Record", SessionRecord, MessageRecord)

SUFFIX = ".longread"
FORMAT = "longread-session"
VERSION = 1
MAX_ENTRIES = 4096
MAX_JSON_BYTES = 64 * 2**20
MAX_MESSAGES = 100_000
_BLOCK_BYTES = 4 * 2**20
_SNAPSHOT_NAME = re.compile(r"snapshot/[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_JSON_NAMES = ("manifest.json", "messages.json", "document.json")
_SETTING_TYPES = {
    "model": str,
    "weights": str,
    "budget_tokens": int,
    "allocation": str,
    "scorer": str,
    "positions": str,
    "chunk_tokens": int,
    "read_twice": bool,
    "refit": bool,
    "kv_bits": str,
}
_NEXT_STEP = "Ask for the file again, or read the document yourself."


def export_session(library: Library, session_id: str, target: Path) -> int:
    """Write a finished session to `target`, whole or not at all; returns its bytes.

    Raises NoSuchSession, or SessionNotReady if there is no sound snapshot.
    """
    record = library.session(session_id)
    snapshot = library.paths.snapshot(record.id)
    if record.state != SESSION_READY or not snapshot.is_dir():
        raise SessionNotReady(
            f"Session {record.id} is not ready to be exported.", "Read its document first."
        )
    document = library.document(record.document)
    assert document is not None
    original = original_file(library.paths, record.document)
    messages = [asdict(message) for message in library.messages(record.id)]
    files: dict[str, Path | bytes] = {
        "messages.json": json.dumps(messages, ensure_ascii=False).encode(),
        "document.json": library.paths.document(record.document) / PARSED_NAME,
        f"original/{safe_name(original.name)}": original,
    }
    for file in sorted(snapshot.iterdir()):
        files[f"snapshot/{file.name}"] = file
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "session": asdict(record),
        "document": asdict(document),
        "files": {name: _digest_of(content) for name, content in files.items()},
    }
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            archive.writestr("manifest.json", json.dumps(manifest, ensure_ascii=False, indent=1))
            for name, content in files.items():
                if isinstance(content, bytes):
                    archive.writestr(name, content)
                else:
                    archive.write(content, name)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target.stat().st_size


def import_session(library: Library, file: Path) -> SessionRecord:
    """Take in a portable file. Raises PortableFileBad, DocumentMissing or NotEnoughDisk.

    Everything is unpacked beside its place and checked; only then does it appear in the library.
    """
    from ingest.errors import DocumentMissing

    if not file.is_file():
        raise DocumentMissing(f"There is no file {file}.", "Check its name and folder.")
    try:
        with zipfile.ZipFile(file) as archive:
            return _Import(library, archive).run()
    except zipfile.BadZipFile as error:
        raise _bad(f"{file.name} is not a session file ({error})") from error


class _Import:
    """One import: the archive, what its manifest says, and a folder to unpack into."""

    def __init__(self, library: Library, archive: zipfile.ZipFile) -> None:
        self.library = library
        self.archive = archive
        self.entries = _checked_entries(archive)
        self.manifest = self._manifest()

    def run(self) -> SessionRecord:
        """Unpack, check, publish."""
        from engine.files import need_disk

        record = self._session()
        if self.library.find_session(record.id) is not None:
            raise PortableFileBad(
                f"Session {record.id} is in the library already.",
                "Delete it first if the file's is to take its place.",
            )
        paths = self.library.paths
        need_disk(paths.snapshots, sum(e.file_size for e in self.entries.values()), "The session")
        work = paths.snapshots / f"import-{record.id}.tmp-{os.getpid()}"
        try:
            self._unpack(work)
            document = self._document(work, record)
            self._check_identity(work, record)
            messages = self._messages(work)
            self._publish(work, record, document, messages)
        finally:
            if work.exists():
                shutil.rmtree(work)
        return self.library.session(record.id)

    def _manifest(self) -> dict[str, Any]:
        for name in _JSON_NAMES:
            if name not in self.entries:
                raise _bad(f"it has no {name}")
        manifest = _json_object(self.archive.read("manifest.json"), "manifest.json")
        if manifest.get("format") != FORMAT:
            raise _bad("it is not a session file")
        if manifest.get("version") != VERSION:
            raise PortableFileBad(
                f"The file has version {manifest.get('version')!r}; this program reads {VERSION}.",
                "Update Longread, or export the session again with this version.",
            )
        listed = manifest.get("files")
        if not isinstance(listed, dict) or set(listed) != set(self.entries) - {"manifest.json"}:
            raise _bad("its manifest does not list the files it holds")
        return manifest

    def _session(self) -> SessionRecord:
        record = _record(SessionRecord, self.manifest.get("session"))
        if not re.fullmatch(rf"[0-9a-f]{{{ID_LETTERS}}}", record.id):
            raise _bad("its session has an impossible id")
        if not re.fullmatch(r"[0-9a-f]{64}", record.document):
            raise _bad("its document has an impossible digest")
        if record.state != SESSION_READY:
            raise _bad("its session was not read to the end")
        found = {name: type(value) for name, value in record.settings.items()}
        # Sessions from before there was such a choice.
        for later in ("read_twice", "refit", "kv_bits"):
            found.setdefault(later, _SETTING_TYPES[later])
        if found != _SETTING_TYPES:
            raise _bad("its session has other settings than expected")
        return record

    def _unpack(self, work: Path) -> None:
        """Write every file under `work`, comparing size and SHA-256 with the manifest."""
        for name, stated in self.manifest["files"].items():
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.archive.open(self.entries[name]) as source, target.open("wb") as copy:
                found = _copy(source, copy, self.entries[name].file_size)
            if found != stated:
                raise _bad(f"{name} is not what the manifest says")

    def _document(self, work: Path, record: SessionRecord) -> Document:
        from ingest import Document

        try:
            document = Document.from_json((work / "document.json").read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError) as error:
            raise _bad(f"document.json cannot be read ({error})") from error
        originals = [name for name in self.manifest["files"] if name.startswith("original/")]
        if len(originals) != 1:
            raise _bad("it must hold one original file")
        sha256 = self.manifest["files"][originals[0]]["sha256"]
        if not sha256 == document.sha256 == record.document:
            raise _bad("its original is another file than the session's document")
        if not 1 <= record.first_page <= record.last_page <= len(document.pages):
            raise _bad("its session names pages that the document does not have")
        return document

    def _check_identity(self, work: Path, record: SessionRecord) -> None:
        """The session's id must follow from what the snapshot says it was made of."""
        from engine import manifest as snapshot_manifest
        from engine.errors import SnapshotError

        try:
            inner = snapshot_manifest.read(work / "snapshot")
        except SnapshotError as error:
            raise _bad(f"its snapshot is refused: {error.cause}") from error
        identity = inner.get("extra", {}).get("identity")
        if not isinstance(identity, dict) or session_id_of(identity) != record.id:
            raise _bad("its snapshot belongs to another session")
        if identity.get("document") != record.document:
            raise _bad("its snapshot belongs to another document")

    def _messages(self, work: Path) -> list[MessageRecord]:
        rows = _json((work / "messages.json").read_bytes(), "messages.json")
        if not isinstance(rows, list) or len(rows) > MAX_MESSAGES:
            raise _bad("messages.json is not a conversation")
        messages = [_record(MessageRecord, row) for row in rows]
        if any(message.role not in ("user", "assistant") for message in messages):
            raise _bad("messages.json holds an unknown role")
        return messages

    def _publish(
        self,
        work: Path,
        record: SessionRecord,
        document: Document,
        messages: list[MessageRecord],
    ) -> None:
        stated = self.manifest.get("document")
        stated = stated if isinstance(stated, dict) else {}
        place = self.library.paths.document(document.sha256)
        if not place.exists():
            parsed = work / "parsed"
            parsed.mkdir()
            os.replace(work / "document.json", parsed / PARSED_NAME)
            os.replace(work / "original", parsed / "original")
            os.replace(parsed, place)
        if self.library.document(document.sha256) is None:
            self.library.add_document(
                document,
                safe_name(str(stated.get("file_name", document.title))),
                needs_password=bool(stated.get("needs_password")),
            )
        os.replace(work / "snapshot", self.library.paths.snapshot(record.id))
        self.library.import_session(record, messages)


def _checked_entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by name. Refuses odd names, compression, encryption and repetitions."""
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise _bad(f"it holds {len(infos)} files")
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        if not _is_allowed(name):
            raise _bad(f"it holds a file of a name that is not allowed: {name[:80]!r}")
        if name in entries:
            raise _bad(f"it holds {name} twice")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise _bad(f"{name} is compressed")
        if info.flag_bits & 1:
            raise _bad(f"{name} is encrypted")
        if name.endswith(".json") and info.file_size > MAX_JSON_BYTES:
            raise _bad(f"{name} is too large")
        entries[name] = info
    return entries


def _is_allowed(name: str) -> bool:
    if name in _JSON_NAMES:
        return True
    if name.startswith("original/"):
        inner = name.removeprefix("original/")
        return inner == safe_name(inner) and inner not in (".", "..")
    return _SNAPSHOT_NAME.fullmatch(name) is not None


def _digest_of(content: Path | bytes) -> dict[str, Any]:
    if isinstance(content, bytes):
        return {"sha256": hashlib.sha256(content).hexdigest(), "nbytes": len(content)}
    digest = hashlib.sha256()
    with content.open("rb") as source:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "nbytes": content.stat().st_size}


def _copy(source: IO[bytes], target: IO[bytes], nbytes: int) -> dict[str, Any]:
    """Copy at most the stated number of bytes; returns what was found."""
    digest = hashlib.sha256()
    copied = 0
    while block := source.read(min(_BLOCK_BYTES, nbytes - copied + 1)):
        copied += len(block)
        if copied > nbytes:
            raise _bad("a file is longer than the archive says")
        digest.update(block)
        target.write(block)
    return {"sha256": digest.hexdigest(), "nbytes": copied}


def _record(kind: type[Record], row: Any) -> Record:
    """A record from a stranger's JSON: exactly its fields, each of its plain type."""
    names = {field.name: str(field.type) for field in fields(kind)}
    if not isinstance(row, dict) or set(row) != set(names):
        raise _bad(f"a {kind.__name__} has other fields than expected")
    plain: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "str": (str,),
        "bool": (bool,),
        "float": (int, float),
        "int | None": (int, type(None)),
    }
    for name, annotation in names.items():
        wanted = plain.get(annotation, (dict,))
        if not isinstance(row[name], wanted):
            raise _bad(f"{name} of a {kind.__name__} is not a {annotation}")
    return kind(**row)


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _bad(f"{name} cannot be read ({type(error).__name__})") from error


def _json_object(data: bytes, name: str) -> dict[str, Any]:
    value = _json(data, name)
    if not isinstance(value, dict):
        raise _bad(f"{name} is not an object")
    return value


def _bad(reason: str) -> PortableFileBad:
    return PortableFileBad(f"The session file is refused: {reason}.", _NEXT_STEP)
