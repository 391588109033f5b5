"""Writing a session to one file (app.portable)."""

from __future__ import annotations

import json
import os
import re
import zipfile
from dataclasses import asdict
from pathlib import Path

from app.errors import BadTarget, SessionNotReady
from app.library import Library
from app.portable import FORMAT, SUFFIX, VERSION, digest_of
from app.records import SESSION_READY, SessionRecord
from app.store import PARSED_NAME, original_file, safe_name

_MAX_NAME_BYTES = 150


def default_target(record: SessionRecord) -> Path:
    """TITLE.longread in the folder at hand. Raises BadTarget if it is there already."""
    target = Path(title_name(record.title) + SUFFIX)
    if target.exists():
        raise BadTarget(
            f"{target} is there already.",
            f"Name the file to write, as in `export {record.id[:8]} FILE`; one that is named is "
            "replaced.",
        )
    return target


def title_name(title: str) -> str:
    """A title as a file name that is harmless in every file system; it has no suffix."""
    clean = re.sub(r"[^\w\-. ()]", "_", " ".join(title.split())).encode()
    return clean[:_MAX_NAME_BYTES].decode(errors="ignore").strip(" .") or "document"


def export_session(library: Library, session_id: str, target: Path) -> int:
    """Write a finished session to `target`, whole or not at all; returns its bytes.

    Raises NoSuchSession, SessionNotReady if there is no sound snapshot, or BadTarget.
    """
    record = library.session(session_id)
    _check_target(target)
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
        "files": {name: digest_of(content) for name, content in files.items()},
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


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise BadTarget(f"{target} is a folder.", "Name a file in it.")
    if target.exists() and not target.is_file():
        raise BadTarget(f"{target} is not an ordinary file.", "Name another file to write.")
    if not target.parent.is_dir():
        raise BadTarget(f"There is no folder {target.parent}.", "Name a file in one that exists.")
