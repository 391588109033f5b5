"""What an evaluation found on one document, and the file in which a long run keeps it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULT_VERSION = 1


@dataclass(frozen=True)
class Row:
    """One cache of one document and its marks, one per question in their order.

    scorer       who chose what stays; "full" for the whole cache
    kept         share of the document's tokens that was asked for
    f1, recall   of the generated answers, in [0, 1]; None if none were generated
    nll          mean negative log-likelihood per token of each first answer, in nats
    bytes        of the cache
    kept_tokens  mean entries per layer and KV head
    overlap      share of the entries that the oracle keeps too; None if there was no oracle
    seconds      pruning (or reading, where the cache was read by itself) and answering
    """

    scorer: str
    kept: float
    f1: list[float] | None
    recall: list[float] | None
    nll: list[float]
    bytes: int
    kept_tokens: float
    overlap: float | None
    seconds: float


@dataclass(frozen=True)
class DocumentResult:
    """One document: its tokens (header, text and closing), the full cache's marks, the others'."""

    name: str
    n_tokens: int
    n_questions: int
    full: Row | None
    rows: list[Row]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DocumentResult:
        """Build from the plain values of `dataclasses.asdict`."""
        full = values["full"]
        rows = [Row(**row) for row in values["rows"]]
        return cls(**{**values, "full": full and Row(**full), "rows": rows})


class ResultLog:
    """Finished documents as JSON lines, each under a key that names document and settings.

    A line that was cut off or is no result is passed over; so are lines of other runs. All of
    them stay in the file.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises OSError if the file cannot be read or appended to; it is there from now on."""
        self._path = path
        self._known: dict[str, DocumentResult] = {}
        if path is None:
            return
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
        path.open("ab").close()
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            self._take(line)

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
            if entry["version"] == RESULT_VERSION:
                self._known[entry["key"]] = DocumentResult.from_dict(entry["result"])
        except (ValueError, RecursionError, KeyError, TypeError):
            return

    def get(self, key: str) -> DocumentResult | None:
        """The result under a key, if an earlier run finished it."""
        return self._known.get(key)

    def add(self, key: str, result: DocumentResult) -> None:
        """Append a result; it is on disk when this returns."""
        if self._path is None:
            return
        entry = {"version": RESULT_VERSION, "key": key, "result": asdict(result)}
        with self._path.open("a+b") as file:
            if file.tell() and not _ends_a_line(file):
                file.write(b"\n")
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
