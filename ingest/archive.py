"""ZIP-based documents looked at before anything unpacks them: what is inside, and how much."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ingest.errors import (
    BrokenDocument,
    DocumentTooLarge,
    NotADocument,
    PasswordRequired,
    UnsupportedDocument,
)
from ingest.limits import MIB, ParseLimits

MAX_ENTRIES = 20_000
MAX_RATIO = 300  # deflate reaches 1032:1 on zeros; real books stay under 30:1
_RATIO_FREE_BYTES = 32 * MIB
_FONT_OBFUSCATION = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_OFFICE = {
    "xl/workbook.xml": ("an Excel workbook", "Save it as PDF or CSV and open that."),
    "ppt/presentation.xml": ("a PowerPoint presentation", "Save it as PDF and open that."),
}
# what zipfile raises over damaged archives, unreachable offsets (OSError) included
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    ValueError,
    EOFError,
    NotImplementedError,
    struct.error,
)
_OPENDOCUMENT = "application/vnd.oasis.opendocument"


def archive_kind(path: Path, suffix: str, limits: ParseLimits) -> str:
    """ "epub", "docx" or "xps" for the ZIP file at `path`.

    Raises BrokenDocument (no readable directory, or names that leave the archive), NotADocument
    (an ordinary ZIP), UnsupportedDocument (other office formats, copy protection),
    DocumentTooLarge (more entries, bytes or expansion than `limits` and the constants allow).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            _refuse_bombs(infos, path.stat().st_size, limits)
            _refuse_escapes(infos)
            return _kind(archive, {info.filename for info in infos}, suffix)
    except ZIP_ERRORS as error:
        what = {".epub": "EPUB", ".docx": "Word"}.get(suffix, "ZIP")
        raise BrokenDocument(
            f"The {what} file is damaged: its table of contents cannot be read ({error}).",
            "Get a fresh copy of the file.",
        ) from error


def _refuse_bombs(infos: list[zipfile.ZipInfo], size: int, limits: ParseLimits) -> None:
    if len(infos) > MAX_ENTRIES:
        raise DocumentTooLarge(
            f"The archive holds {len(infos):,} entries, more than {MAX_ENTRIES:,}.",
            "This is unusual for a document: open only files you trust.",
        )
    expanded = sum(info.file_size for info in infos)
    packed = sum(info.compress_size for info in infos)
    if expanded > limits.max_expanded_bytes:
        raise DocumentTooLarge(
            f"The file unpacks to {expanded / MIB:,.0f} MiB, more than "
            f"{limits.max_expanded_bytes / MIB:,.0f} MiB.",
            "Raise the limit only if you trust where it comes from.",
        )
    bombed = expanded > _RATIO_FREE_BYTES and expanded > MAX_RATIO * max(size, 1)
    if bombed or packed > 2 * size + 1024:
        raise DocumentTooLarge(
            f"The file of {size:,} bytes claims to unpack to {expanded:,} bytes.",
            "This is what a decompression bomb looks like: open only files you trust.",
        )


def _refuse_escapes(infos: list[zipfile.ZipInfo]) -> None:
    for info in infos:
        name = info.filename.replace("\\", "/")
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise BrokenDocument(
                f"The archive holds a file name that leaves it: {info.filename[:80]!r}.",
                "Open only files you trust.",
            )


def _kind(archive: zipfile.ZipFile, names: set[str], suffix: str) -> str:
    if "word/document.xml" in names:
        return "docx"
    for marker, (what, next_step) in _OFFICE.items():
        if marker in names:
            raise UnsupportedDocument(f"This is {what}, which cannot be read.", next_step)
    mimetype = _mimetype(archive, names)
    if mimetype.startswith(_OPENDOCUMENT):
        raise UnsupportedDocument(
            "This is an OpenDocument file, which cannot be read.",
            "Save it as DOCX or PDF and open that.",
        )
    if mimetype == "application/epub+zip" or "META-INF/container.xml" in names:
        _refuse_copy_protection(archive, names)
        return "epub"
    if any(name.lower().endswith((".fdseq", ".fpage")) for name in names):
        return "xps"
    if suffix in (".epub", ".docx", ".xps", ".oxps"):
        raise BrokenDocument(
            f"The file is named {suffix} but the archive holds none of its required parts.",
            "Get a fresh copy of the file.",
        )
    raise NotADocument(
        "This is a ZIP archive, not a document.", "Unpack it and open the document inside."
    )


def _mimetype(archive: zipfile.ZipFile, names: set[str]) -> str:
    return _read(archive, "mimetype", 200).strip() if "mimetype" in names else ""


def _refuse_copy_protection(archive: zipfile.ZipFile, names: set[str]) -> None:
    if "META-INF/encryption.xml" not in names:
        return
    listed = _read(archive, "META-INF/encryption.xml", MIB)
    methods = listed.count("EncryptionMethod ")
    fonts = sum(listed.count(uri) for uri in _FONT_OBFUSCATION)
    if methods > fonts:
        raise UnsupportedDocument(
            "The book is copy-protected (DRM); its text cannot be read.",
            "Use a copy without protection, if you have the right to one.",
        )


def _read(archive: zipfile.ZipFile, name: str, limit: int) -> str:
    try:
        with archive.open(name) as entry:
            return entry.read(limit).decode("utf-8", errors="replace")
    except RuntimeError as error:  # zipfile's way of saying that an entry is encrypted
        raise PasswordRequired(
            "The archive is encrypted.", "Unpack it with its password and open the document inside."
        ) from error
