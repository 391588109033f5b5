"""The launcher never uses a half-made environment, and a second start does nothing but start."""

from __future__ import annotations

import ast
import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import launch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Any:
    """A folder with a requirements file and something that looks like an interpreter."""
    root = tmp_path / "Jörg Müller (1)"
    root.mkdir()
    requirements = root / "requirements.txt"
    requirements.write_text("torch==2.13.0\n")
    python = root / "python"
    python.write_text("")
    good = {"root": str(root), "requirements": launch.file_digest(str(requirements))}

    def needs(stamp: dict[str, Any]) -> str:
        return launch.needs(stamp, str(root), str(requirements), str(python))

    return SimpleNamespace(
        root=root, requirements=requirements, python=python, good=good, needs=needs
    )


def test_a_finished_environment_needs_nothing(place: Any) -> None:
    assert place.needs(place.good) == "nothing"


def test_an_interrupted_installation_is_finished(place: Any) -> None:
    assert place.needs({}) == "install"


def test_changed_requirements_are_installed(place: Any) -> None:
    place.requirements.write_text("torch==2.14.0\n")
    assert place.needs(place.good) == "install"


def test_a_moved_folder_is_rebuilt(place: Any) -> None:
    assert place.needs({**place.good, "root": "/elsewhere"}) == "rebuild"


def test_a_missing_interpreter_is_rebuilt(place: Any) -> None:
    place.python.unlink()
    assert place.needs(place.good) == "rebuild"


def test_the_stamp_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "stamp.json"
    assert launch.read_stamp(str(path)) == {}
    launch.write_stamp({"a": 1}, str(path))
    assert launch.read_stamp(str(path)) == {"a": 1}
    path.write_text('{"a": ')
    assert launch.read_stamp(str(path)) == {}
    assert [p.name for p in tmp_path.iterdir()] == ["stamp.json"]


def test_a_failed_installation_leaves_no_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = tmp_path / "longread.json"
    stamp.write_text("{}")
    monkeypatch.setattr(launch, "STAMP", str(stamp))
    monkeypatch.setattr(launch, "VENV", str(tmp_path))
    monkeypatch.setattr(launch, "find_gpus", lambda: [])
    monkeypatch.setattr(launch, "install_torch", lambda *_: "pip")
    monkeypatch.setattr(launch, "run_logged", lambda *_: 1)
    with pytest.raises(launch.SetupFailed, match=r"install\.log"):
        launch.install_requirements()
    assert not stamp.exists()


def test_a_card_is_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    answer = SimpleNamespace(returncode=0, stdout="NVIDIA GeForce RTX 4070, 580.1, 8.9\n")
    assert launch.find_gpus(lambda *_, **__: answer) == ["NVIDIA GeForce RTX 4070, 580.1, 8.9"]
    broken = SimpleNamespace(returncode=9, stdout="no driver")
    assert launch.find_gpus(lambda *_, **__: broken) == []


def test_with_a_card_uv_picks_the_build_and_pip_is_the_announced_fallback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], title: str, log: str) -> int:
        ran.append(command)
        return 1 if "--torch-backend=auto" in command else 0

    assert launch.install_torch("python", "log", ["RTX 4070"], run) == "pip"
    assert any("--torch-backend=auto" in c and "torch==2.13.0" in c for c in ran)
    assert ran[-1] == ["python", "-m", "pip", "install", "torch==2.13.0"]
    assert "could not be chosen" in capsys.readouterr().err


def test_without_a_card_plain_pip_takes_the_pin() -> None:
    ran: list[list[str]] = []
    launch.install_torch("python", "log", [], lambda c, *_: ran.append(c) or 0)
    assert ran == [["python", "-m", "pip", "install", "torch==2.13.0"]]


@pytest.mark.parametrize(
    ("note", "works", "words"),
    [
        ({"works": True, "torch": "2.13", "why": ""}, True, "CUDA works"),
        ({"works": False, "torch": "2.13", "why": "no usable card"}, False, "no usable card"),
    ],
)
def test_the_self_test_is_one_sentence(note: dict[str, Any], works: bool, words: str) -> None:
    result = SimpleNamespace(stdout=json.dumps(note), stderr="")
    found, sentence = launch.cuda_self_test("python", lambda *_, **__: result)
    assert found is works
    assert words in sentence


def test_the_self_test_survives_a_torch_that_crashes() -> None:
    result = SimpleNamespace(stdout="", stderr="c10.dll not found")
    assert launch.cuda_self_test("python", lambda *_, **__: result) == (
        False,
        "torch does not start: c10.dll not found",
    )


def test_other_pythons_do_not_leak_in() -> None:
    env = launch.clean_environment({"PYTHONPATH": "/x", "PYTHONHOME": "/y", "NO_PROXY": "a.b"})
    assert "PYTHONPATH" not in env and "PYTHONHOME" not in env
    assert env["NO_PROXY"] == "a.b,localhost,127.0.0.1,::1"
    assert env["PYTHONNOUSERSITE"] == "1"


def hold(path: str, held: Any, seconds: float) -> None:
    with launch.lock(path):
        held.set()
        time.sleep(seconds)


def test_a_second_start_waits_and_a_killed_one_frees_the_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    other = context.Process(target=hold, args=(path, held, 60))
    other.start()
    assert held.wait(20)
    with open(path, "a+b") as file:  # noqa: PTH123
        assert not launch.try_lock(file)
    other.kill()
    other.join()
    with launch.lock(path) as waited:
        assert waited in (True, False)


def test_a_full_disk_is_refused_before_downloading() -> None:
    with pytest.raises(launch.SetupFailed, match="free") as caught:
        launch.check_disk(10**18)
    assert caught.value.code == 5


def test_an_old_python_can_read_the_message() -> None:
    source = (ROOT / "launch.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))


def test_a_finished_environment_starts_the_command_without_network(tmp_path: Path) -> None:
    """A copy of the launcher in a folder with spaces and umlauts, a real but empty environment,
    and an application that prints what it got."""
    root = tmp_path / "Jörg Müller (1)"
    (root / "app").mkdir(parents=True)
    (root / "launch.py").write_bytes((ROOT / "launch.py").read_bytes())
    (root / "requirements.txt").write_text("torch==2.13.0\n")
    (root / "app" / "__init__.py").write_text("")
    (root / "app" / "cli.py").write_text(
        "import json, os, sys\n"
        "def main(arguments):\n"
        "    print(json.dumps([arguments, os.getcwd(), sys.prefix]))\n"
        "    return 7\n"
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / ".venv")], check=True)
    stamp = {
        "root": str(root),
        "requirements": launch.file_digest(str(root / "requirements.txt")),
    }
    (root / ".venv" / "longread.json").write_text(json.dumps(stamp))
    work = tmp_path / "elsewhere"
    work.mkdir()
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, str(root / "launch.py"), "ask", "ein Buch.pdf", "-q", "Wer?"],
        cwd=work,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**launch.clean_environment(), "PIP_NO_INDEX": "1"},
    )
    assert result.returncode == 7, result.stderr
    arguments, cwd, prefix = json.loads(result.stdout)
    assert arguments == ["ask", "ein Buch.pdf", "-q", "Wer?"]
    assert Path(cwd) == work
    assert Path(prefix) == root / ".venv"
    assert time.perf_counter() - started < 2.0
