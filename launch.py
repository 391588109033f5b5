#!/usr/bin/env python3
"""Start Longread: double-click this file, or run `python launch.py COMMAND`.

Standard library only. On a fresh machine it makes `.venv` beside itself, installs
requirements.txt into it, and runs itself again there. A start with a finished `.venv` touches
no network.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import traceback

ROOT = os.path.dirname(os.path.realpath(__file__))
MINIMUM = (3, 11)
FREE_BYTES_NEEDED = 4 * 10**9
FREE_BYTES_NEEDED_CUDA = 10 * 10**9
WINDOWS = os.name == "nt"
WINDOWS_ROOT_CHARS = 90  # the longest path inside the environment needs the rest of the 260
HELP = """\
usage: python launch.py [COMMAND] [ARGUMENTS]

Sets up once what Longread needs beside this file, then runs the command. Of its own it has

  test [PYTEST ARGUMENTS]  install the development requirements, run every check
  --repair [COMMAND]       build the environment anew, then run the command (doctor)
"""


def hold_window_open() -> None:
    """A double-clicked window must not vanish with its message; a shell's prompt stays anyway."""
    if WINDOWS and "PROMPT" not in os.environ and sys.stdin and sys.stdin.isatty():
        input("Press Enter to close this window.")


def refuse() -> str:
    """Why nothing can be started from here, or "". Runs on old Pythons: they must parse this."""
    if sys.version_info < MINIMUM:
        version = sys.version.split()[0]
        return "Longread needs Python 3.11 or newer; this is %s. Get it from python.org." % version
    if not os.path.exists(os.path.join(ROOT, "requirements.txt")):
        return (
            "The rest of Longread is not beside launch.py in %s. If this is inside an archive, "
            "unpack all of it first." % ROOT
        )
    return ""


if __name__ == "__main__" and refuse():
    sys.stderr.write(refuse() + "\n")
    hold_window_open()
    sys.exit(1)

sys.path.insert(0, ROOT)
from app.setup.cuda import cuda_self_test, find_gpus, install_torch
from app.setup.installer import Installer, SetupFailed, clean_environment, say
from app.setup.lock import lock


class Place:
    """The folder that launch.py stands in, and what the launcher keeps there."""

    def __init__(self, root: str = ROOT) -> None:
        self.root = root
        self.requirements = os.path.join(root, "requirements.txt")
        self.test_requirements = os.path.join(root, "tests", "requirements.txt")
        self.venv = os.path.join(root, ".venv")
        self.python = os.path.join(
            self.venv, *(("Scripts", "python.exe") if WINDOWS else ("bin", "python"))
        )
        self.stamp = os.path.join(self.venv, "longread.json")
        self.lock = os.path.join(root, ".venv.lock")
        self.log = os.path.join(root, ".venv.log")


def file_digest(path: str) -> str:
    """SHA-256 of a file, or "" if it is not there."""
    if not os.path.exists(path):
        return ""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def read_stamp(place: Place) -> dict[str, str]:
    """What the last installation left, or {} if none came so far."""
    try:
        with open(place.stamp, encoding="utf-8") as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(place: Place, stamp: dict[str, str]) -> None:
    """Written beside its place, flushed and renamed, so that it is whole or absent."""
    temporary = place.stamp + ".tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(stamp, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, place.stamp)


def needs(place: Place) -> str:
    """What must be done: "nothing", "install" (finish or update) or "rebuild".

    `state` in the stamp is "installing" while an installer runs, so finding it means that one was
    killed: files may be half written, and only a new environment is sure. After an orderly failure
    it is "failed": what is installed is whole, and the rest can follow.
    """
    stamp = read_stamp(place)
    if not os.path.exists(place.python) or stamp.get("state") not in ("complete", "failed"):
        return "rebuild"
    if stamp.get("root") != place.root:
        return "rebuild"  # the folder was moved
    if stamp.get("interpreter") != os.path.realpath(place.python):
        return "rebuild"  # the system's Python is another one now
    if stamp["state"] == "failed" or stamp.get("requirements") != file_digest(place.requirements):
        return "install"
    return "nothing"


def pinned(name: str, requirements: str) -> str:
    """The pin `name==version` of a requirements file, without its marker."""
    with open(requirements, encoding="utf-8") as file:
        for line in file:
            if line.startswith(name + "=="):
                return line.split("#")[0].split(";")[0].strip()
    raise SetupFailed(f"{requirements} does not pin {name}.")


def warn_of_place(root: str, windows: bool = WINDOWS) -> None:
    """Say where an environment works badly."""
    if "onedrive" in root.lower():
        say("This folder is synchronised by OneDrive: several GB of packages would be uploaded.")
    if windows and len(root) > WINDOWS_ROOT_CHARS:
        say("This folder's path is long; if installing fails, move it nearer to the drive's root.")


def check_disk(root: str, needed: int) -> None:
    """Refuse before downloading what the disk cannot hold."""
    free = shutil.disk_usage(root).free
    if free < needed:
        raise SetupFailed(
            f"Setting up needs {needed / 1e9:.0f} GB of free disk, and {free / 1e9:.1f} GB are "
            f"free in {root}. Free some and start again.",
            code=5,
        )


def remove_venv(place: Place) -> None:
    """Remove `.venv`, its stamp first, so that what is left of it is never taken for whole.

    Of a link only the link goes: what it points to is another folder's.
    """
    if os.path.islink(place.venv):
        os.unlink(place.venv)
        return
    with contextlib.suppress(FileNotFoundError):  # there may be none
        os.remove(place.stamp)
    shutil.rmtree(place.venv, ignore_errors=True)
    if os.path.exists(place.python):
        raise SetupFailed(f"{place.venv} is in use: close Longread, then start again.")


def ensure_environment(place: Place, installer: Installer) -> None:
    """Make `.venv` complete: build, finish, update or leave it, one launcher at a time."""
    if needs(place) == "nothing":
        return
    with lock(place.lock):
        work = needs(place)
        if work == "nothing":
            return
        warn_of_place(place.root)
        gpus = find_gpus()
        check_disk(place.root, FREE_BYTES_NEEDED_CUDA if gpus else FREE_BYTES_NEEDED)
        stamp = read_stamp(place)
        installer.begin(f"{sys.version} on {sys.platform}: {work} {stamp}")
        if stamp.get("state") == "installing":
            say("The last installation was cut off; doing it again.")
        if work == "rebuild":
            build_venv(place, installer)
        install_requirements(place, installer, gpus)


def build_venv(place: Place, installer: Installer) -> None:
    """Make an empty `.venv` in the place of what is there."""
    say(f"Setting up Longread in {place.venv}; this happens once and takes some minutes.")
    remove_venv(place)
    command = [sys.executable, "-m", "venv", place.venv]
    if installer.run(command, "Making the environment") != 0:
        raise SetupFailed(
            "Python could not make a virtual environment (on Debian and Ubuntu it needs "
            f"`sudo apt install python3-venv`). The log: {place.log}"
        )


def install_requirements(place: Place, installer: Installer, gpus: list[str]) -> None:
    """Install torch, then requirements.txt, prove the card if there is one, leave the stamp."""
    stamp = {
        "state": "installing",
        "root": place.root,
        "interpreter": os.path.realpath(place.python),
    }
    write_stamp(place, stamp)
    try:
        torch = pinned("torch", place.requirements)
        stamp["torch"] = install_torch(place.python, torch, gpus, installer)
        command = [place.python, "-m", "pip", "install", "-r", place.requirements]
        if installer.run(command, "Installing Longread's packages") != 0:
            raise installer.failure("Longread's packages")
    except SetupFailed:
        write_stamp(place, {**stamp, "state": "failed"})
        raise
    stamp["cuda"] = "no NVIDIA card"
    if gpus:
        _, stamp["cuda"] = cuda_self_test(place.python)
        say(stamp["cuda"])
    stamp.update(state="complete", requirements=file_digest(place.requirements))
    write_stamp(place, stamp)


def ensure_test_tools(place: Place, installer: Installer) -> None:
    """Install tests/requirements.txt once into the finished environment."""
    wanted = file_digest(place.test_requirements)
    if read_stamp(place).get("tests") == wanted:
        return
    with lock(place.lock):
        stamp = read_stamp(place)
        if stamp.get("tests") == wanted:
            return
        command = [place.python, "-m", "pip", "install", "-r", place.test_requirements]
        if stamp.get("tests") == "installing":  # cut off: what looks whole may be half written
            command.append("--force-reinstall")
        write_stamp(place, {**stamp, "tests": "installing"})
        if installer.run(command, "Installing the test tools") != 0:
            raise installer.failure("The test tools")
        write_stamp(place, {**stamp, "tests": wanted})


def inside(place: Place) -> bool:
    """True in the process that runs on the environment's own interpreter."""
    return os.path.realpath(sys.prefix) == os.path.realpath(place.venv)


def run_here(arguments: list[str]) -> int:
    """Hand over to the application, in this process."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(HELP)
    from app.cli import main as command

    return command(arguments)


def run_again(python: str, arguments: list[str]) -> int:
    """Run this file on another interpreter. Returns only on Windows."""
    command = [python, "-s", os.path.join(ROOT, "launch.py"), *arguments]
    env = clean_environment()
    sys.stdout.flush()
    sys.stderr.flush()
    if not WINDOWS:
        os.execve(command[0], command, env)
    with subprocess.Popen(command, env=env) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the command got it too, and decides how to end
                continue


def main(arguments: list[str]) -> int:
    """Set up what is missing, then run the command. Returns the exit code."""
    place = Place()
    own = arguments[:1] in (["test"], ["--repair"])
    wants_help = not {"-h", "--help"}.isdisjoint(arguments)
    if wants_help and own:
        print(HELP)
        return 0
    ready = needs(place) == "nothing"
    if (inside(place) and ready and not own) or (wants_help and not ready):
        return run_here(arguments)  # to describe the commands needs nothing installed
    if inside(place):  # the environment cannot set itself up
        return run_again(getattr(sys, "_base_executable", ""), arguments)
    installer = Installer(place.log)
    if arguments[:1] == ["--repair"]:
        arguments = arguments[1:] or ["doctor"]
        with lock(place.lock):
            remove_venv(place)
    ensure_environment(place, installer)
    if arguments[:1] == ["test"]:
        ensure_test_tools(place, installer)
        checks = os.path.join(place.root, "tests", "checks.py")
        return subprocess.call([place.python, checks, *arguments[1:]], env=clean_environment())
    return run_again(place.python, arguments)


def guarded(arguments: list[str]) -> int:
    """`main`, with every failure told: in a sentence, or with its traceback if it is ours."""
    try:
        return main(arguments)
    except SetupFailed as failed:
        say(str(failed))
        return failed.code
    except KeyboardInterrupt:
        say("Interrupted. Start again to go on.")
        return 130
    except OSError as error:
        say(f"Longread could not be started: {error}. The log, if any: {Place().log}")
        return 5 if error.errno == errno.ENOSPC else 1
    except Exception:  # noqa: BLE001 - the top of the program: shown, and the window kept open
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    exit_code = guarded(sys.argv[1:])
    if exit_code and not inside(Place()):
        hold_window_open()
    sys.exit(exit_code)
