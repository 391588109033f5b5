"""The launcher never uses a half-made environment, and a second start does nothing but start."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import launch
from app.setup import cuda
from app.setup.installer import Installer, Progress, SetupFailed, clean_environment
from app.setup.lock import lock, try_lock

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = """
import json, os, sys
def main(arguments):
    print(json.dumps([arguments, os.getcwd(), sys.prefix, os.environ.get("PYTHONPATH")]))
    return 7
"""


class FakeInstaller(Installer):
    """Records commands; one that contains the word `failing` fails, after printing `output`."""

    def __init__(self, log: Path, failing: str = "-", output: str = "") -> None:
        super().__init__(str(log))
        self.failing, self.output = failing, output
        self.ran: list[str] = []

    def run(self, command: list[str], title: str) -> int:
        self.ran.append(" ".join(command))
        if command[1:3] == ["-m", "venv"]:
            make_interpreter(launch.Place(str(Path(command[3]).parent)))
        if self.failing not in command:
            return 0
        Path(self.log).write_text(f"\n$ {command}\n{self.output}\n")
        return 1


def make_interpreter(place: launch.Place) -> None:
    Path(place.python).parent.mkdir(parents=True)
    Path(place.python).touch()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> launch.Place:
    """A launcher's folder with an awkward name, something like an interpreter, and no card."""
    place = launch.Place(str(tmp_path / "Jörg Müller (1)"))
    make_interpreter(place)
    Path(place.requirements).write_text("# why\ntorch==2.13.0; python_version > '3'\n")
    Path(place.test_requirements).parent.mkdir()
    Path(place.test_requirements).write_text("pytest==9.2.0\n")
    monkeypatch.setattr(launch, "find_gpus", list)
    return place


def install(place: launch.Place, failing: str = "-", output: str = "") -> FakeInstaller:
    installer = FakeInstaller(Path(place.log), failing, output)
    launch.ensure_environment(place, installer)
    return installer


def finished(place: launch.Place) -> launch.Place:
    launch.install_requirements(place, FakeInstaller(Path(place.log)), [])
    return place


# --- what must be done -------------------------------------------------------------------------


def test_an_empty_folder_gets_an_environment_and_torch_before_the_rest(place: launch.Place) -> None:
    ran = install(place).ran
    assert "-m venv" in ran[0]
    assert ran[1].endswith("pip install torch==2.13.0")
    assert ran[2].endswith(f"-r {place.requirements}")
    assert launch.needs(place) == "nothing"


def test_a_finished_environment_runs_no_installer(place: launch.Place) -> None:
    finished(place)
    assert launch.needs(place) == "nothing"
    assert install(place).ran == []


def test_a_killed_installation_is_done_again_from_nothing(place: launch.Place) -> None:
    class Killed(FakeInstaller):
        def run(self, command: list[str], title: str) -> int:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch.install_requirements(place, Killed(Path(place.log)), [])
    assert launch.read_stamp(place)["state"] == "installing"
    assert launch.needs(place) == "rebuild"


def test_a_venv_without_a_stamp_is_not_trusted(place: launch.Place) -> None:
    assert launch.needs(place) == "rebuild"


def test_an_update_that_is_killed_does_not_leave_the_old_stamp(place: launch.Place) -> None:
    finished(place)
    Path(place.requirements).write_text("torch==2.14.0\n")
    assert launch.needs(place) == "install"
    states: list[str] = []

    class Watching(FakeInstaller):
        def run(self, command: list[str], title: str) -> int:
            states.append(launch.read_stamp(place)["state"])
            return 0

    launch.ensure_environment(place, Watching(Path(place.log)))
    assert set(states) == {"installing"}
    assert launch.needs(place) == "nothing"


def test_a_failed_installation_is_finished_not_used(place: launch.Place) -> None:
    finished(place)
    Path(place.requirements).write_text("torch==2.14.0\n")
    with pytest.raises(SetupFailed):
        install(place, failing="-r")
    assert launch.needs(place) == "install"
    assert not any("-m venv" in command for command in install(place).ran)
    assert launch.needs(place) == "nothing"


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_of_a_link_to_another_folders_environment_only_the_link_goes(
    place: launch.Place, tmp_path: Path
) -> None:
    other = launch.Place(str(tmp_path / "other"))
    Path(other.venv).mkdir(parents=True)
    Path(other.stamp).write_text("{}")
    shutil.rmtree(place.venv)
    Path(place.venv).symlink_to(other.venv)
    launch.remove_venv(place)
    assert not os.path.lexists(place.venv) and Path(other.stamp).read_text() == "{}"


def test_a_moved_folder_is_rebuilt(place: launch.Place) -> None:
    finished(place)
    moved = launch.Place(place.root + " moved")
    os.rename(place.root, moved.root)
    assert launch.needs(moved) == "rebuild"


def test_another_python_behind_the_link_is_noticed(place: launch.Place, tmp_path: Path) -> None:
    old, new = tmp_path / "python3.11", tmp_path / "python3.12"
    for python in (old, new):
        python.touch()
    Path(place.python).unlink()
    Path(place.python).symlink_to(old)
    finished(place)
    assert launch.needs(place) == "nothing"
    Path(place.python).unlink()
    Path(place.python).symlink_to(new)
    assert launch.needs(place) == "rebuild"


def test_a_missing_interpreter_is_rebuilt(place: launch.Place) -> None:
    Path(finished(place).python).unlink()
    assert launch.needs(place) == "rebuild"


def test_a_stamp_that_is_not_whole_counts_as_none(place: launch.Place) -> None:
    finished(place)
    assert not Path(place.stamp + ".tmp").exists()
    Path(place.stamp).write_text('{"state": "comp')
    assert launch.needs(place) == "rebuild"


def test_test_tools_are_installed_once_and_wholly_after_a_kill(place: launch.Place) -> None:
    finished(place)
    installer = FakeInstaller(Path(place.log))
    for _ in range(2):
        launch.ensure_test_tools(place, installer)
    assert len(installer.ran) == 1 and "--force-reinstall" not in installer.ran[0]
    launch.write_stamp(place, {**launch.read_stamp(place), "tests": "installing"})
    launch.ensure_test_tools(place, installer)
    assert "--force-reinstall" in installer.ran[1]


def test_a_full_disk_is_refused_before_anything_is_downloaded(
    place: launch.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(SetupFailed, match=r"4 GB of free disk, and 1\.0 GB") as caught:
        install(place)
    assert caught.value.code == 5
    assert Path(place.python).exists()


# --- torch and the card ------------------------------------------------------------------------


def test_cards_are_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.shutil, "which", lambda _: "/usr/bin/nvidia-smi")

    def answer(code: int, text: str) -> Any:
        return lambda *_, **__: SimpleNamespace(returncode=code, stdout=text)

    card = "NVIDIA GeForce RTX 4070, 580.1, 8.9"
    assert cuda.find_gpus(answer(0, card + "\n")) == [card]
    assert cuda.find_gpus(answer(0, "No devices were found\n")) == []
    assert cuda.find_gpus(answer(9, "couldn't communicate with the driver")) == []
    monkeypatch.setattr(cuda.shutil, "which", lambda _: None)
    assert cuda.find_gpus(answer(0, card)) == []


def test_for_a_card_uv_picks_the_build_and_pip_is_the_announced_fallback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = FakeInstaller(tmp_path / "log")
    assert cuda.install_torch("python", "torch==2.13.0", ["RTX 4070"], good) == "uv"
    assert good.ran[-1].endswith("--torch-backend=auto torch==2.13.0")
    assert "could not be chosen" not in capsys.readouterr().err
    bad = FakeInstaller(tmp_path / "log", failing="--torch-backend=auto")
    assert cuda.install_torch("python", "torch==2.13.0", ["RTX 4070"], bad) == "pip"
    assert bad.ran[-1] == "python -m pip install torch==2.13.0"
    assert "could not be chosen" in capsys.readouterr().err


FAKE_TORCH = """
import warnings
__version__ = "2.13.0"
class version: cuda = {cuda!r}
class cuda:
    def is_available():
        if {warning!r}: warnings.warn({warning!r})
        return {available!r}
    def get_device_capability(): return {card!r}
    def get_arch_list(): return {built!r}
class Tensor:
    def __matmul__(self, other):
        if {error!r}: raise RuntimeError({error!r})
        return self
    def sum(self): return 64.0 ** 3
def ones(*_, device): return Tensor()
"""
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040). Please update"
BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("torch", "works", "words"),
    [
        ({"cuda": None}, False, "build of torch without CUDA"),
        ({"available": False, "warning": OLD_DRIVER}, False, "driver on your system is too old"),
        ({"available": False}, False, "torch sees no usable card"),
        ({}, True, "CUDA works (torch 2.13.0)"),  # 8.9 runs what was built for 8.6
        ({"card": (6, 1), "error": "no kernel image"}, False, "not built for cards of capability"),
        ({"error": "CUDA error: out of memory\nmore"}, False, "out of memory. Longread"),
    ],
)
def test_the_self_test_says_in_a_sentence_what_is_wrong(
    torch: dict[str, Any], works: bool, words: str, tmp_path: Path
) -> None:
    usual = {"cuda": "13.0", "available": True, "card": (8, 9), "built": BUILT}
    values = {"warning": "", "error": "", **usual, **torch}
    (tmp_path / "torch.py").write_text(FAKE_TORCH.format(**values))

    def run(command: list[str], **settings: Any) -> Any:
        return subprocess.run(command, **settings, cwd=tmp_path)

    found, sentence = cuda.cuda_self_test(sys.executable, run)
    assert (found, words in sentence) == (works, True), sentence
    assert "\n" not in sentence


def test_the_self_test_survives_a_torch_that_does_not_start() -> None:
    broken = SimpleNamespace(stdout="", stderr="c10.dll not found")
    answer = cuda.cuda_self_test("python", lambda *_, **__: broken)
    assert answer == (False, "torch does not start: c10.dll not found")


# --- running installers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "words", "code"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full", 5),
        ("NewConnectionError('<...>: Failed to establish a new connection')", "internet", 1),
        ("ERROR: No matching distribution found for torch==2.13.0", "this Python", 1),
        ("something unheard of", "log says why", 1),
    ],
)
def test_a_failed_installer_is_explained_and_the_log_is_named(
    place: launch.Place, output: str, words: str, code: int
) -> None:
    with pytest.raises(SetupFailed, match=words) as caught:
        install(place, failing="torch==2.13.0", output=output)
    assert caught.value.code == code
    assert place.log in str(caught.value)


def test_an_installer_runs_without_input_and_its_output_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installer = Installer(str(tmp_path / "log"))
    script = "import sys; print('Collecting ä', sys.stdin.read()); sys.exit(3)"
    assert installer.run([sys.executable, "-c", script], "Trying") == 3
    assert "Collecting ä" in (tmp_path / "log").read_text(encoding="utf-8")
    assert "Trying: failed" in capsys.readouterr().err


def test_progress_counts_packages_and_names_the_phase() -> None:
    progress = Progress("Installing")
    for line in (
        "Collecting torch==2.13.0 (from -r requirements.txt (line 6))",
        "  Downloading torch-2.13.0-cp311-none-win_amd64.whl (191.8 MB)",
        "Requirement already satisfied: numpy",
        "Collecting filelock",
    ):
        progress.take(line)
    assert str(progress) == "Installing: 2 packages, collecting filelock (0 s)"
    progress.take("Installing collected packages: mpmath, torch")
    assert "installing 2 packages" in str(progress)
    progress.end("done")


def test_other_pythons_do_not_leak_in() -> None:
    env = clean_environment({"PYTHONPATH": "/x", "PYTHONHOME": "/y", "PIP_CERT": "/z"})
    assert "PYTHONPATH" not in env and "PYTHONHOME" not in env
    assert env["PYTHONNOUSERSITE"] == "1"
    assert env["PIP_CERT"] == "/z"


def test_loopback_never_goes_through_a_proxy() -> None:
    assert clean_environment({"no_proxy": "a.b"})["NO_PROXY"] == "a.b,localhost,127.0.0.1,::1"
    assert clean_environment({"NO_PROXY": "*"})["NO_PROXY"] == "*"


# --- one launcher at a time --------------------------------------------------------------------


def hold(path: str, held: Any, seconds: float) -> None:
    with lock(path):
        held.set()
        time.sleep(seconds)


def test_a_second_start_waits_until_the_first_is_gone_even_if_killed(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    other = context.Process(target=hold, args=(path, held, 60))
    other.start()
    assert held.wait(20)
    with open(path, "a+b") as file:  # noqa: PTH123
        assert not try_lock(file)
    threading.Timer(0.3, other.kill).start()
    with lock(path) as waited:
        assert waited
    other.join()
    with lock(path) as waited:
        assert not waited


@pytest.mark.skipif(os.name != "posix", reason="Windows handles are not inherited with the lock")
def test_an_installer_that_outlives_its_launcher_keeps_the_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with lock(path):
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, close_fds=False)
    with open(path, "a+b") as file:  # noqa: PTH123
        assert not try_lock(file)
        orphan.communicate(b"\n")
        assert try_lock(file)


# --- starting for real -------------------------------------------------------------------------


def copy_launcher(root: Path) -> None:
    """launch.py, what it imports, and an application that prints what it got."""
    shutil.copytree(ROOT / "app" / "setup", root / "app" / "setup")
    shutil.copy(ROOT / "launch.py", root)
    (root / "requirements.txt").write_text("torch==2.13.0\n")
    (root / "app" / "__init__.py").touch()
    (root / "app" / "cli.py").write_text(APPLICATION)


def run_launcher(root: Path, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [settings.pop("python", sys.executable), str(root / "launch.py"), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**clean_environment(), "PIP_NO_INDEX": "1", "PYTHONPATH": "/of/others"},
        **settings,
    )


def children_cpu_s() -> float:
    """Processor seconds of ended children: what a start costs, however busy the machine is."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.fixture
def set_up(tmp_path: Path) -> launch.Place:
    """A launcher beside a real environment without packages, stamped as finished."""
    place = launch.Place(str(tmp_path / "Jörg Müller (1) #! 100%"))
    copy_launcher(Path(place.root))
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", place.venv], check=True)
    return finished(place)


def test_a_second_start_reaches_the_command_at_once(set_up: launch.Place, tmp_path: Path) -> None:
    work = tmp_path / "elsewhere"
    work.mkdir()
    started = children_cpu_s()
    result = run_launcher(Path(set_up.root), "ask", "ein Buch.pdf", "-q", "Wer?", cwd=work)
    took = children_cpu_s() - started
    assert result.returncode == 7, result.stderr
    assert result.stderr == ""
    arguments, cwd, prefix, leaked = json.loads(result.stdout)
    assert arguments == ["ask", "ein Buch.pdf", "-q", "Wer?"]
    assert Path(cwd) == work
    assert Path(prefix) == Path(set_up.venv)
    assert leaked is None
    assert took < 2.0


@pytest.mark.skipif(os.name != "posix", reason="a link to the launcher")
def test_a_link_to_the_launcher_starts_the_same_environment(
    set_up: launch.Place, tmp_path: Path
) -> None:
    link = tmp_path / "longread"
    link.symlink_to(Path(set_up.root) / "launch.py")
    result = subprocess.run([sys.executable, link], capture_output=True, text=True)
    assert result.returncode == 7, result.stderr


def test_the_environments_own_python_does_not_run_a_half_made_environment(
    set_up: launch.Place,
) -> None:
    assert run_launcher(Path(set_up.root), python=set_up.python).returncode == 7
    launch.write_stamp(set_up, {**launch.read_stamp(set_up), "state": "failed"})
    result = run_launcher(Path(set_up.root), python=set_up.python)
    assert result.returncode == 1
    assert "torch could not be installed" in result.stderr
    assert set_up.log in result.stderr


def test_help_needs_no_installation(tmp_path: Path) -> None:
    """On the standard library alone (-S), with the real commands."""
    shutil.copytree(ROOT / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("launch.py", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for arguments in (["--help"], ["ask", "--help"], ["test", "--help"]):
        result = subprocess.run(
            [sys.executable, "-S", str(tmp_path / "launch.py"), *arguments],
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert "usage:" in result.stdout
    assert not (tmp_path / ".venv").exists()


def test_alone_in_an_archives_folder_it_says_so(tmp_path: Path) -> None:
    shutil.copy(ROOT / "launch.py", tmp_path)
    result = run_launcher(tmp_path)
    assert result.returncode == 1
    assert "unpack" in result.stderr


def test_an_old_python_can_read_the_message() -> None:
    source = (ROOT / "launch.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    assert any(isinstance(node, ast.FunctionDef) for node in tree.body)
