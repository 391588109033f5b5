"""Imports run one way; function-level imports count too."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "kernels": {"kernels"},
    "engine": {"engine", "kernels"},
    "heads": {"heads", "engine", "kernels"},
    "ingest": {"ingest"},
    "app": {"app", "heads", "engine", "kernels", "ingest"},
}
ROOMS = {*ALLOWED, "tests", "launch"}


def imported_roots(source: str) -> set[str]:
    """First parts of all absolutely imported names, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_to_the_right(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files, f"{room}/ is empty"
    for path in files:
        wrong = (imported_roots(path.read_text(encoding="utf-8")) & ROOMS) - ALLOWED[room]
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_ingest_needs_no_torch() -> None:
    for path in (ROOT / "ingest").rglob("*.py"):
        heavy = imported_roots(path.read_text(encoding="utf-8")) & {"torch", "transformers"}
        assert not heavy, f"{path.relative_to(ROOT)} imports {sorted(heavy)}"


def test_launch_and_its_setup_use_the_standard_library_alone() -> None:
    """They run before anything is installed; `app` stands for app.setup and the command line."""
    for path in (ROOT / "launch.py", *(ROOT / "app" / "setup").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        assert imported_roots(source) - set(sys.stdlib_module_names) <= {"app"}, path
        if path.name != "launch.py":
            names = {n.module for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)}
            assert all((n or "").startswith("app.setup") for n in names if "app" in (n or ""))


def test_the_walk_sees_imports_inside_functions() -> None:
    assert imported_roots("def f():\n    from app.cli import main\n    import torch.nn") == {
        "app",
        "torch",
    }
