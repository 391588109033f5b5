"""A session as one file: made to be handed on, and therefore read as input from strangers.

A ZIP archive without compression:
    manifest.json     format, version, the session's row, the document's row, hashes of the rest
    messages.json     the conversation
    document.json     the parsed text
    original/NAME     the original file
    snapshot/...      the cache: safetensors and its own manifest

Nothing in it is executed or unpickled. Here stand the form of the file and the checks of one that
came from elsewhere; app.exporting writes it, app.importing takes it in.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, TypeVar

from app.errors import PortableFileBad
from app.records import MessageRecord, SessionRecord
from app.store import safe_name

Record = TypeVar("Record", SessionRecord, MessageRecord)

SUFFIX = ".longread"
FORMAT = "longread-session"
VERSION = 1
MAX_ENTRIES = 4096
MAX_JSON_BYTES = 64 * 2**20
JSON_NAMES = ("manifest.json", "messages.json", "document.json")
_BLOCK_BYTES = 4 * 2**20
_SNAPSHOT_NAME = re.compile(r"snapshot/[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NEXT_STEP = "Ask for the file again, or read the document yourself."


def checked_entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by name. Refuses odd names, compression, encryption and repetitions."""
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise refused(f"it holds {len(infos)} files")
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        if not _is_allowed(name):
            raise refused(f"it holds a file of a name that is not allowed: {name[:80]!r}")
        if name in entries:
            raise refused(f"it holds {name} twice")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise refused(f"{name} is compressed")
        if info.flag_bits & 1:
            raise refused(f"{name} is encrypted")
        if name.endswith(".json") and info.file_size > MAX_JSON_BYTES:
            raise refused(f"{name} is too large")
        entries[name] = info
    return entries


def _is_allowed(name: str) -> bool:
    if name in JSON_NAMES:
        return True
    if name.startswith("original/"):
        inner = name.removeprefix("original/")
        return inner == safe_name(inner) and inner not in (".", "..")
    return _SNAPSHOT_NAME.fullmatch(name) is not None


def digest_of(content: Path | bytes) -> dict[str, Any]:
    """SHA-256 and size, as the manifest lists them."""
    if isinstance(content, bytes):
        return {"sha256": hashlib.sha256(content).hexdigest(), "nbytes": len(content)}
    digest = hashlib.sha256()
    with content.open("rb") as source:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "nbytes": content.stat().st_size}


def checked_copy(source: IO[bytes], target: IO[bytes], nbytes: int) -> dict[str, Any]:
    """Copy at most the stated number of bytes; returns what was found."""
    digest = hashlib.sha256()
    copied = 0
    while block := source.read(min(_BLOCK_BYTES, nbytes - copied + 1)):
        copied += len(block)
        if copied > nbytes:
            raise refused("a file is longer than the archive says")
        digest.update(block)
        target.write(block)
    return {"sha256": digest.hexdigest(), "nbytes": copied}


def checked_record(kind: type[Record], row: Any) -> Record:
    """A record from a stranger's JSON: exactly its fields, each of its plain type."""
    names = {field.name: str(field.type) for field in fields(kind)}
    if not isinstance(row, dict) or set(row) != set(names):
        raise refused(f"a {kind.__name__} has other fields than expected")
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
            raise refused(f"{name} of a {kind.__name__} is not a {annotation}")
    return kind(**row)


def json_value(data: bytes, name: str) -> Any:
    """What a JSON file of the archive holds."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refused(f"{name} cannot be read ({type(error).__name__})") from error


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """As `json_value`, if it is an object."""
    value = json_value(data, name)
    if not isinstance(value, dict):
        raise refused(f"{name} is not an object")
    return value


def refused(reason: str) -> PortableFileBad:
    """The error to raise for a file that is not as it must be."""
    return PortableFileBad(f"The session file is refused: {reason}.", _NEXT_STEP)
