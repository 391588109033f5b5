"""What one parse may cost: time, memory, pages, bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MIB = 1024 * 1024


@dataclass(frozen=True)
class ParseLimits:
    """Bounds for reading one document; every one is enforced, none is a hint.

    timeout_s           seconds, of the processor (POSIX) and of the clock, until the worker is
                        killed; while it still turns pages the clock may run three times as long, so
                        that a machine busy with a model refuses no document that is only large
    memory_bytes        address space of the worker (POSIX; elsewhere a warning says so)
    max_pages           pages (chapters, sections) of one parse; a page range counts its own
    max_file_bytes      size of the file on disk
    max_expanded_bytes  unpacked size of EPUB, DOCX and XPS, which are ZIP archives
    max_chars           characters of the finished text
    """

    timeout_s: float = 50.0
    memory_bytes: int = 2048 * MIB
    max_pages: int = 5000
    max_file_bytes: int = 512 * MIB
    max_expanded_bytes: int = 512 * MIB
    max_chars: int = 20_000_000

    def to_dict(self) -> dict[str, Any]:
        """The limits as plain values, for the request to the worker."""
        return asdict(self)
