"""Taking in a session from one file (app.portable) that a stranger may have made.

Names, sizes and hashes are checked before anything is put in its place; the cache is checked again,
against the model and the text, when it is first opened.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import PortableFileBad
from app.identity import ID_LETTERS, session_id_of
from app.library import Library, remove_folder
from app.portable import (
    FORMAT,
    JSON_NAMES,
    VERSION,
    checked_copy,
    checked_entries,
    checked_record,
    json_object,
    json_value,
    refused,
)
from app.records import SESSION_READY, MessageRecord, SessionRecord
from app.store import PARSED_NAME, safe_name

if TYPE_CHECKING:
    from ingest import Document

MAX_MESSAGES = 100_000
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


def import_session(library: Library, file: Path) -> SessionRecord:
    """Take in a portable file.

    Raises PortableFileBad, DocumentMissing, SessionBusy or NotEnoughDisk.

    Everything is unpacked beside its place and checked; only then does it appear in the library.
    """
    from ingest.errors import DocumentMissing

    if not file.exists():
        raise DocumentMissing(f"There is no file {file}.", "Check its name and folder.")
    if not file.is_file():
        what = "a folder" if file.is_dir() else "not an ordinary file"
        raise PortableFileBad(f"{file} is {what}.", "Name a file that `export` has written.")
    try:
        with zipfile.ZipFile(file) as archive:
            return _Import(library, archive).run()
    except zipfile.BadZipFile as error:
        raise refused(f"{file.name} is no whole session file ({error})") from error


class _Import:
    """One import: the archive, what its manifest says, and a folder to unpack into."""

    def __init__(self, library: Library, archive: zipfile.ZipFile) -> None:
        self.library = library
        self.archive = archive
        self.entries = checked_entries(archive)
        self.manifest = self._manifest()

    def run(self) -> SessionRecord:
        """Unpack, check, publish."""
        record = self._session()
        with self.library.holding(record.id):
            if self.library.find_session(record.id) is not None:
                raise PortableFileBad(
                    f"Session {record.id} is in the library already.",
                    "Delete it first if the file's is to take its place.",
                )
            self._take_in(record)
        return self.library.session(record.id)

    def _take_in(self, record: SessionRecord) -> None:
        from engine.files import need_disk

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
            remove_folder(work)

    def _manifest(self) -> dict[str, Any]:
        for name in JSON_NAMES:
            if name not in self.entries:
                raise refused(f"it has no {name}")
        manifest = json_object(self.archive.read("manifest.json"), "manifest.json")
        if manifest.get("format") != FORMAT:
            raise refused("it is not a session file")
        if manifest.get("version") != VERSION:
            raise PortableFileBad(
                f"The file has version {manifest.get('version')!r}; this program reads {VERSION}.",
                "Update Longread, or export the session again with this version.",
            )
        listed = manifest.get("files")
        if not isinstance(listed, dict) or set(listed) != set(self.entries) - {"manifest.json"}:
            raise refused("its manifest does not list the files it holds")
        return manifest

    def _session(self) -> SessionRecord:
        record = checked_record(SessionRecord, self.manifest.get("session"))
        if not re.fullmatch(rf"[0-9a-f]{{{ID_LETTERS}}}", record.id):
            raise refused("its session has an impossible id")
        if not re.fullmatch(r"[0-9a-f]{64}", record.document):
            raise refused("its document has an impossible digest")
        if record.state != SESSION_READY:
            raise refused("its session was not read to the end")
        found = {name: type(value) for name, value in record.settings.items()}
        # Sessions from before there was such a choice.
        for later in ("read_twice", "refit", "kv_bits"):
            found.setdefault(later, _SETTING_TYPES[later])
        if found != _SETTING_TYPES:
            raise refused("its session has other settings than expected")
        return record

    def _unpack(self, work: Path) -> None:
        """Write every file under `work`, comparing size and SHA-256 with the manifest."""
        for name, stated in self.manifest["files"].items():
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.archive.open(self.entries[name]) as source, target.open("wb") as copy:
                found = checked_copy(source, copy, self.entries[name].file_size)
            if found != stated:
                raise refused(f"{name} is not what the manifest says")

    def _document(self, work: Path, record: SessionRecord) -> Document:
        from ingest import Document

        try:
            document = Document.from_json((work / "document.json").read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError) as error:
            raise refused(f"document.json cannot be read ({error})") from error
        originals = [name for name in self.manifest["files"] if name.startswith("original/")]
        if len(originals) != 1:
            raise refused("it must hold one original file")
        sha256 = self.manifest["files"][originals[0]]["sha256"]
        if not sha256 == document.sha256 == record.document:
            raise refused("its original is another file than the session's document")
        if not 1 <= record.first_page <= record.last_page <= len(document.pages):
            raise refused("its session names pages that the document does not have")
        return document

    def _check_identity(self, work: Path, record: SessionRecord) -> None:
        """The session's id must follow from what the snapshot says it was made of."""
        from engine import manifest as snapshot_manifest
        from engine.errors import SnapshotError

        try:
            inner = snapshot_manifest.read(work / "snapshot")
        except SnapshotError as error:
            raise refused(f"its snapshot is refused: {error.cause}") from error
        identity = inner.get("extra", {}).get("identity")
        if not isinstance(identity, dict) or session_id_of(identity) != record.id:
            raise refused("its snapshot belongs to another session")
        if identity.get("document") != record.document:
            raise refused("its snapshot belongs to another document")

    def _messages(self, work: Path) -> list[MessageRecord]:
        rows = json_value((work / "messages.json").read_bytes(), "messages.json")
        if not isinstance(rows, list) or len(rows) > MAX_MESSAGES:
            raise refused("messages.json is not a conversation")
        messages = [checked_record(MessageRecord, row) for row in rows]
        if any(message.role not in ("user", "assistant") for message in messages):
            raise refused("messages.json holds an unknown role")
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
        snapshot = self.library.paths.snapshot(record.id)
        remove_folder(snapshot)  # of a library whose database was moved away
        os.replace(work / "snapshot", snapshot)
        self.library.import_session(record, messages)
