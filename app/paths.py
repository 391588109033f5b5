"""Where everything lies on disk: one data directory, redirectable as a whole."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from app.errors import DataDirUnusable

DATA_ENV = "LONGREAD_DATA"
MODELS_ENV = "LONGREAD_MODELS"
# What the system says where a disk, or a person's share of it, is full.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class DataPaths:
    """The data directory and its parts; nothing is created until `make` is called."""

    root: Path
    models: Path

    @property
    def database(self) -> Path:
        """The SQLite file of the library."""
        return self.root / "library.db"

    @property
    def documents(self) -> Path:
        """Originals and parsed texts, one folder per SHA-256."""
        return self.root / "documents"

    @property
    def snapshots(self) -> Path:
        """Saved caches, one folder per session; `ID.partial` while a document is being read."""
        return self.root / "snapshots"

    @property
    def logs(self) -> Path:
        """Log files."""
        return self.root / "logs"

    def document(self, sha256: str) -> Path:
        """Folder of one document."""
        return self.documents / sha256

    def snapshot(self, session_id: str) -> Path:
        """Folder of a finished session's cache."""
        return self.snapshots / session_id

    def partial(self, session_id: str) -> Path:
        """Folder of the last checkpoint of a reading that has not ended."""
        return self.snapshots / f"{session_id}.partial"

    def make(self) -> DataPaths:
        """Create the folders (new ones readable by their owner only) and return self.

        Raises DataDirUnusable, or OSError where the disk is full.
        """
        for folder in (self.root, self.documents, self.snapshots, self.logs):
            _make(folder, mode=0o700)
        _make(self.models)
        return self


def data_paths(data_dir: str | Path | None = None) -> DataPaths:
    """Resolve the data directory: the argument, else LONGREAD_DATA, else the user's data folder.

    Model files lie in `models/` below it, or wherever LONGREAD_MODELS says, so that several data
    directories can share one set of weights. Raises DataDirUnusable for the home of nobody.
    """
    chosen = data_dir or os.environ.get(DATA_ENV)
    if not chosen:
        import platformdirs

        chosen = platformdirs.user_data_dir("Longread", appauthor=False)
    root = _absolute(Path(chosen))
    models = os.environ.get(MODELS_ENV)
    return DataPaths(root, _absolute(Path(models)) if models else root / "models")


def _absolute(folder: Path) -> Path:
    try:
        return folder.expanduser().absolute()
    except RuntimeError as error:
        raise _unusable(folder, "there is no such user") from error


def _make(folder: Path, mode: int = 0o777) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        reason = "it is a file" if folder.is_file() else str(error.strerror).lower()
        raise _unusable(folder, reason) from error


def _unusable(folder: Path, reason: str) -> DataDirUnusable:
    return DataDirUnusable(
        f"The folder {folder} cannot be used: {reason}.",
        f"Choose another with --data-dir (or {DATA_ENV}; models lie in {MODELS_ENV}, if that is "
        "set).",
    )
