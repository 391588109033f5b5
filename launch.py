#!/usr/bin/env python3
"""Start Longread: double-click this file, or run `python launch.py COMMAND`.

Standard library only. On a fresh machine it makes `.venv` beside itself, installs
requirements.txt into it, and runs itself again there. A start with a finished `.venv` touches
no network. `python launch.py --repair` builds the environment anew.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "longread.json")
REQUIREMENTS = os.path.join(ROOT, "requirements.txt")
TEST_REQUIREMENTS = os.path.join(ROOT, "tests", "requirements.txt")
MINIMUM = (3, 11)
UV = "uv==0.13.9"  # picks the CUDA build; needed on machines with a card only
FREE_BYTES_NEEDED = 4 * 1024**3
WINDOWS = os.name == "nt"


class SetupFailed(Exception):
    """The environment could not be made; the text is for the user, `code` for the shell."""

    def __init__(self, message, code=1):
        super().__init__(message)
        self.code = code


def say(text):
    """One line to the user, never mixed into a command's own output."""
    print(text, file=sys.stderr, flush=True)


def venv_python(venv=VENV):
    """The interpreter inside the environment."""
    return os.path.join(venv, *(("Scripts", "python.exe") if WINDOWS else ("bin", "python")))


def clean_environment(env=None):
    """The environment variables our own processes get: nothing of other Pythons leaks in."""
    env = dict(os.environ if env is None else env)
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
        env.pop(name, None)
    env.update(PYTHONNOUSERSITE="1", PYTHONUTF8="1")
    hosts = [h for h in env.get("NO_PROXY", env.get("no_proxy", "")).split(",") if h]
    for host in ("localhost", "127.0.0.1", "::1"):
        if host not in hosts:
            hosts.append(host)
    env["NO_PROXY"] = env["no_proxy"] = ",".join(hosts)
    return env


def file_digest(path):
    """SHA-256 of a file, or of nothing if it is not there."""
    if not os.path.exists(path):
        return ""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def read_stamp(path=STAMP):
    """What the last finished installation left, or {} if none finished."""
    try:
        with open(path, encoding="utf-8") as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(stamp, path=STAMP):
    """Written beside its place, flushed and renamed, so that it is whole or absent."""
    temporary = path + ".tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(stamp, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def needs(stamp, root=ROOT, requirements=REQUIREMENTS, python=None):
    """What must be done: "nothing", "install" (finish or update) or "rebuild" (moved or broken)."""
    python = python or venv_python(os.path.join(root, ".venv"))
    if not os.path.exists(python):
        return "rebuild"
    if stamp and stamp.get("root") != root:
        return "rebuild"
    if stamp.get("requirements") != file_digest(requirements):
        return "install"
    return "nothing"


def inside():
    """True in the process that runs on the environment's own interpreter."""
    return os.path.realpath(sys.prefix) == os.path.realpath(VENV)


@contextlib.contextmanager
def lock(path):
    """Hold a file lock; a second launcher waits. The system frees it if the holder is killed."""
    with open(path, "a+b") as file:
        waited = False
        while not try_lock(file):
            if not waited:
                say("Another start is setting up Longread; waiting for it ...")
            waited = True
            time.sleep(0.5)
        yield waited


def try_lock(file):
    """Take an exclusive lock on an open file without waiting; False if somebody holds it."""
    try:
        if WINDOWS:
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Progress:
    """One line that says what pip is doing: phase, packages so far, seconds."""

    def __init__(self, title):
        self.title, self.started, self.count = title, time.time(), 0
        self.live = sys.stderr.isatty()
        self.shown = 0.0

    def line(self, text):
        """Take one line of pip's output."""
        found = re.match(r"\s*(Collecting|Downloading|Installing|Building|Using cached) (.*)", text)
        if not found:
            return
        word, rest = found.groups()
        self.count += word == "Collecting"
        if word == "Installing":
            rest = "%d packages" % (rest.count(",") + 1)
        self.show("%s %s" % (word.lower(), rest.strip()[:60]))

    def show(self, text):
        """Repaint on a terminal; elsewhere print at most one line in five seconds."""
        now = time.time()
        line = "%s: %d packages, %s (%d s)" % (self.title, self.count, text, now - self.started)
        if self.live:
            sys.stderr.write("\r\033[K" + line[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()
        elif now - self.shown > 5:
            say(line)
            self.shown = now

    def done(self):
        """End the line."""
        if self.live:
            sys.stderr.write("\r\033[K")
        say("%s: done in %d s" % (self.title, time.time() - self.started))


def run_logged(command, title, log):
    """Run an installer with a progress line, everything it prints in the log; returns its code."""
    progress = Progress(title)
    with open(log, "a", encoding="utf-8") as file:
        file.write("\n$ %s\n" % " ".join(command))
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=clean_environment(),
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        for line in process.stdout:
            file.write(line)
            progress.line(line)
        code = process.wait()
    if code == 0:
        progress.done()
    return code


def find_gpus(run=subprocess.run):
    """Names of NVIDIA cards as the driver's own tool lists them; [] without card or driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        result = run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if result.returncode != 0:
        return []
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def pinned(name, requirements=REQUIREMENTS):
    """The line `name==version` of requirements.txt, without comment and marker."""
    with open(requirements, encoding="utf-8") as file:
        for line in file:
            if line.startswith(name + "=="):
                return line.split("#")[0].split(";")[0].strip()
    raise SetupFailed("requirements.txt does not pin %s." % name)


def install_torch(python, log, gpus, run=run_logged):
    """Install torch: a CUDA build where a card was found, else what pip finds. Returns a note."""
    torch = pinned("torch")
    if gpus:
        say("NVIDIA card found (%s): installing a CUDA build of torch." % gpus[0])
        pip = [python, "-m", "pip", "install", UV]
        uv = [python, "-m", "uv", "pip", "install", "--python", python, torch]
        if (
            run(pip, "Preparing", log) == 0
            and run([*uv, "--torch-backend=auto"], "torch for CUDA", log) == 0
        ):
            return "cuda through uv"
        say("The CUDA build could not be chosen automatically; taking what pip finds instead.")
    if run([python, "-m", "pip", "install", torch], "torch", log) != 0:
        raise SetupFailed("torch could not be installed. The log is %s" % log)
    return "pip"


SELF_TEST = """
import json, torch
note = {"torch": torch.__version__, "cuda": torch.version.cuda, "works": False, "why": ""}
if not torch.cuda.is_available():
    note["why"] = "torch %s sees no usable card" % torch.__version__
else:
    major, minor = torch.cuda.get_device_capability()
    if "sm_%d%d" % (major, minor) not in torch.cuda.get_arch_list():
        note["why"] = "this torch was not built for cards of type sm_%d%d" % (major, minor)
    else:
        x = torch.ones(64, 64, device="cuda")
        note["works"] = float((x @ x).sum()) == 64.0**3
print(json.dumps(note))
"""


def cuda_self_test(python, run=subprocess.run):
    """(works, one sentence) of a matrix product on the card with the installed torch."""
    result = run([python, "-c", SELF_TEST], capture_output=True, text=True, env=clean_environment())
    try:
        note = json.loads(result.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return False, "torch does not start: %s" % result.stderr.strip()[-200:]
    if note["works"]:
        return True, "CUDA works (torch %s)." % note["torch"]
    return False, "CUDA does not work: %s. Longread will run on the CPU." % note["why"]


def check_disk(needed=FREE_BYTES_NEEDED):
    """Refuse before downloading what the disk cannot hold."""
    free = shutil.disk_usage(ROOT).free
    if free < needed:
        raise SetupFailed(
            "Setting up needs %.0f GB of free disk and %.1f GB are free. Free some and start again."
            % (needed / 1e9, free / 1e9),
            code=5,
        )


def build_venv():
    """Make `.venv` from scratch."""
    shutil.rmtree(VENV, ignore_errors=True)
    say("Making the environment in %s" % VENV)
    result = subprocess.run(
        [sys.executable, "-m", "venv", VENV],
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise SetupFailed(
            "Python could not make a virtual environment (%s). On Debian and Ubuntu: "
            "sudo apt install python3-venv" % (result.stdout + result.stderr).strip()[-300:]
        )


def ensure_environment():
    """Make `.venv` complete: build, finish, update or leave it, one launcher at a time."""
    if needs(read_stamp()) == "nothing":
        return
    with lock(os.path.join(ROOT, ".venv.lock")):
        stamp = read_stamp()
        work = needs(stamp)
        if work == "nothing":
            return
        check_disk()
        if work == "rebuild":
            build_venv()
        elif not stamp:
            say("The last installation did not finish; finishing it.")
        install_requirements()


def install_requirements():
    """Install torch, then requirements.txt, prove the card if there is one, leave the stamp."""
    python, log = venv_python(), os.path.join(VENV, "install.log")
    with contextlib.suppress(FileNotFoundError):  # a stamp must never outlive its installation
        os.remove(STAMP)
    gpus = find_gpus()
    how = install_torch(python, log, gpus)
    code = run_logged(
        [python, "-m", "pip", "install", "-r", REQUIREMENTS], "Installing Longread", log
    )
    if code != 0:
        raise SetupFailed(
            "The packages could not be installed (no network, or a full disk?). The log is %s\n"
            "Start again to go on where it stopped." % log
        )
    note = "no NVIDIA card"
    if gpus:
        _, note = cuda_self_test(python)
        say(note)
    write_stamp(
        {"root": ROOT, "requirements": file_digest(REQUIREMENTS), "torch": how, "cuda": note}
    )


def ensure_test_environment():
    """Install the development requirements once, and Chromium where the system allows it."""
    stamp = read_stamp()
    wanted = file_digest(TEST_REQUIREMENTS)
    if stamp.get("tests") != wanted:
        python, log = venv_python(), os.path.join(VENV, "install.log")
        command = [python, "-m", "pip", "install", "-r", TEST_REQUIREMENTS]
        if run_logged(command, "Installing the test tools", log) != 0:
            raise SetupFailed("The test tools could not be installed. The log is %s" % log)
        write_stamp(dict(read_stamp(), tests=wanted))
    ensure_chromium()


def find_chromium():
    """A browser the desk's tests can drive, or None."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge"):
        found = shutil.which(name)
        if found:
            return found
    return None


def ensure_chromium():
    """Install Chromium from the distribution where that needs no question; else say so."""
    if find_chromium():
        return
    apt = shutil.which("apt-get")
    if apt and hasattr(os, "geteuid") and os.geteuid() == 0:
        say("Installing Chromium for the desk's tests ...")
        env = dict(clean_environment(), DEBIAN_FRONTEND="noninteractive")
        for command in (["update", "-qq"], ["install", "-y", "-qq", "chromium"]):
            subprocess.run([apt, *command], env=env, stdout=subprocess.DEVNULL, check=False)
    if not find_chromium():
        say("No Chromium here: the desk's browser tests will be skipped. Install it to run them.")


def run_tests(arguments):
    """Lint, format, types, then the suite: one command runs every check. Returns the exit code."""
    ensure_test_environment()
    python = venv_python()
    checks = [
        ("ruff check", [python, "-m", "ruff", "check", "."]),
        ("ruff format", [python, "-m", "ruff", "format", "--check", "."]),
        ("mypy", [python, "-m", "mypy"]),
        ("pytest", [python, "-m", "pytest", *arguments]),
    ]
    if arguments:  # somebody runs chosen tests: the checks of the whole tree can wait
        checks = checks[-1:]
    failed = []
    for name, command in checks:
        say("== %s" % name)
        if subprocess.call(command, cwd=ROOT, env=clean_environment()) != 0:
            failed.append(name)
    say("All checks passed." if not failed else "Failed: %s" % ", ".join(failed))
    return 1 if failed else 0


def run_inside(arguments):
    """In the environment's interpreter: hand over to the application."""
    sys.path.insert(0, ROOT)
    from app.cli import main as command

    return command(arguments)


def start(arguments):
    """Run this file again on the environment's interpreter. Returns only on Windows."""
    command = [venv_python(), "-s", os.path.join(ROOT, "launch.py"), *arguments]
    env = clean_environment()
    if WINDOWS:
        return subprocess.call(command, env=env)
    sys.stdout.flush()
    sys.stderr.flush()
    return os.execve(command[0], command, env)


def hold_window_open():
    """A double-clicked window must not vanish with its message."""
    if WINDOWS and "PROMPT" not in os.environ and sys.stdin and sys.stdin.isatty():
        input("Press Enter to close this window.")


def main(arguments):
    """Set up what is missing, then run the command. Returns the exit code."""
    if sys.version_info < MINIMUM:
        say(
            "Longread needs Python %d.%d or newer; this is Python %s. Get it from python.org."
            % (*MINIMUM, platform.python_version())
        )
        return 1
    if inside():
        return run_inside(arguments)
    if arguments[:1] == ["--repair"]:
        arguments = arguments[1:] or ["doctor"]
        with lock(os.path.join(ROOT, ".venv.lock")):
            shutil.rmtree(VENV, ignore_errors=True)
    ensure_environment()
    if arguments[:1] == ["test"]:
        return run_tests(arguments[1:])
    return start(arguments)


if __name__ == "__main__":
    try:
        exit_code = main(sys.argv[1:])
    except SetupFailed as failure:
        say(str(failure))
        exit_code = failure.code
    except KeyboardInterrupt:
        say("Interrupted. Start again to go on.")
        exit_code = 130
    if exit_code and not inside():
        hold_window_open()
    sys.exit(exit_code)
