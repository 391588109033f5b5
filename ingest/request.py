"""What the worker is asked to do: one file, its kind once known, the limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.charset import Decoded
from ingest.limits import ParseLimits
from ingest.ranges import PageRange


@dataclass(frozen=True)
class Request:
    """One parse. `decoded` and `assumed` come from detection and are set for text kinds only."""

    path: Path
    password: str | None
    pages: PageRange | None
    limits: ParseLimits
    kind: str = ""
    decoded: Decoded | None = None
    assumed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the worker's standard input: a command line would show the password."""
        return {
            "path": str(self.path),
            "password": self.password,
            "pages": self.pages,
            "limits": self.limits.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Request:
        """The reverse of to_dict."""
        pages = data["pages"]
        return cls(
            path=Path(data["path"]),
            password=data["password"],
            pages=None if pages is None else (pages[0], pages[1]),
            limits=ParseLimits(**data["limits"]),
        )
