"""Writing a session to one file (app.portable)."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import asdict
from pathlib import Path

from app.errors import SessionNotReady
from app.library import Library
from app.portable import FORMAT, VERSION, digest_of
from app.records import SESSION_READY
from app.store import PARSED_NAME, original_file, safe_name


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
