"""Temporary copies of dropped files: in the data directory, and gone once not needed."""

from __future__ import annotations

import shutil
from pathlib import Path

FOLDER = "uploads"


class Uploads:
    """The folder that Gradio puts dropped files into, one sub-folder per file.

    The worker copies what it opens into the library, so nothing here outlives the desk.
    """

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / FOLDER

    def clear(self) -> None:
        """Empty the folder; call only while the desk's lock is held."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, mode=0o700)

    def discard(self, path: object) -> None:
        """Delete one dropped file; a path outside the folder is left alone."""
        if not isinstance(path, str):
            return
        file = Path(path).resolve()
        if not file.is_relative_to(self.folder.resolve()) or not file.is_file():
            return
        file.unlink()
        # Another file of the same name and content may share the sub-folder.
        if file.parent != self.folder.resolve() and not any(file.parent.iterdir()):
            file.parent.rmdir()
