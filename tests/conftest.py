"""What every test gets: a throwaway data folder, few threads, and honest skips."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis  # noqa: F401 - imported at the session's end, CPython 3.11 may fail to parse it
import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_configure() -> None:
    """Without a card Triton interprets its kernels; it has to know before anything imports it."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_report_header() -> str:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu say what is missing where there is none."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA card; none was found"))


@pytest.fixture(autouse=True)
def data_dir(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """LONGREAD_DATA points into the test's own folder, always; unit tests see no models either."""
    folder = tmp_path / "data"
    monkeypatch.setenv("LONGREAD_DATA", str(folder))
    if "unit" in request.path.parts:
        monkeypatch.delenv("LONGREAD_MODELS", raising=False)
    return folder


@pytest.fixture(autouse=True)
def few_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny tensors gain nothing from threads and lose much when the machine is busy."""
    if "unit" not in request.path.parts and "kernels" not in request.path.parts:
        yield
        return
    import sys

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(1)
    yield
    if torch and before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real documents; tests that need it are skipped where it is absent."""
    named = os.environ.get("LONGREAD_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the shared documents, and {folder} is not there")
    return folder


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Where model files live; shared between runs, because they are large."""
    named = os.environ.get("LONGREAD_MODELS")
    if named:
        return Path(named)
    from platformdirs import user_data_dir

    return Path(user_data_dir("Longread", appauthor=False)) / "models"
