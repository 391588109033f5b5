"""`doctor`: what this machine has, what was chosen and why, and what to repair."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sqlite3
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.common import add_json, data_dir, print_json
from app.commands.terminal import tell
from app.errors import AppError, DataDirUnusable
from app.records import SESSION_DAMAGED, SESSION_READY

if TYPE_CHECKING:
    from app.paths import DataPaths

NAME = "doctor"
HELP = "say what this machine has, what was chosen and why, and what to repair"
GIB = 2**30
LIBRARIES = (
    "torch transformers safetensors tokenizers accelerate bitsandbytes gradio PyMuPDF python-docx "
    "sqlite-utils platformdirs triton"
)
OPTIONAL = {"triton", "bitsandbytes"}
LOW_DISK_BYTES = 2 * GIB
_OWNED_NAME = re.compile(r"[0-9a-f]+(\.partial)?(\.old)?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report; problems come last, each with its repair."""
    from app.paths import data_paths

    report = examine(data_paths(data_dir(args)))
    if args.json:
        print_json(report)
    else:
        _print_report(report)
    return 0


def examine(paths: DataPaths) -> dict[str, Any]:
    """Everything `doctor` knows, as plain values; `problems` lists {what, repair}."""
    problems: list[dict[str, str]] = []
    versions = _versions(problems)
    report: dict[str, Any] = {
        "python": f"{platform.python_version()} on {platform.platform()}",
        "executable": sys.executable,
        "versions": versions,
        "data": _data(paths, problems),
    }
    if versions.get("torch"):
        report |= _device(paths, problems)
        report["models"] = _models(paths, problems)
    report["problems"] = problems
    return report


def _versions(problems: list[dict[str, str]]) -> dict[str, str | None]:
    found: dict[str, str | None] = {"sqlite": sqlite3.sqlite_version}
    for name in LIBRARIES.split():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
            if name not in OPTIONAL:
                problems.append(
                    {
                        "what": f"The library {name} is missing.",
                        "repair": "Run `python launch.py` again; it installs what is needed.",
                    }
                )
    return found


def _device(paths: DataPaths, problems: list[dict[str, str]]) -> dict[str, Any]:
    import torch

    import kernels
    from app.memory import available_bytes
    from engine.device import card_problem, pick_device
    from engine.numeric import CACHE_NAME, cpu_name, pick_answer_format, pick_format

    device = pick_device("auto")
    cache = paths.models / CACHE_NAME if paths.models.is_dir() else None
    if device == "cuda":
        compute, answers = _card_formats()
    else:
        choice, packed = pick_format(cache), pick_answer_format(cache)
        compute = {"name": choice.name, "reason": choice.reason, "gflops": choice.gflops}
        answers = {"name": packed.name, "reason": packed.reason}
    values: dict[str, Any] = {
        "device": device,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "memory_available_bytes": available_bytes("cpu"),
        "compute_format": compute,
        "answer_format": answers,
        "kernels": kernels.describe(device),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        values["gpu"] = {
            "name": properties.name,
            "total_bytes": properties.total_memory,
            "free_bytes": available_bytes("cuda"),
        }
    elif _has_nvidia_driver():
        problems.append(
            {
                "what": "There is an NVIDIA driver, but this torch build cannot use the GPU: "
                f"{card_problem()}.",
                "repair": "Delete the folder .venv and run `python launch.py` again.",
            }
        )
    return values


def _card_formats() -> tuple[dict[str, Any], dict[str, Any]]:
    """What reading and answering compute in on a card (engine.weights, engine.decoding)."""
    import torch

    from engine.weights import card_format

    capability = torch.cuda.get_device_capability()
    reason = f"of a card of compute capability {capability[0]}.{capability[1]}"
    compute = {"name": card_format(capability), "reason": reason, "gflops": {}}
    return compute, {"name": "stock", "reason": "the model's own modules, on the card"}


def _has_nvidia_driver() -> bool:
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def _models(paths: DataPaths, problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    from engine.registry import default_model, known_models
    from engine.sources import state

    there = paths.models.is_dir()
    rows = [
        {"name": spec.name, "state": state(spec, paths.models) if there else "absent"}
        for spec in known_models()
    ]
    default = default_model()
    if all(row["state"] == "absent" for row in rows if row["name"] == default):
        problems.append(
            {
                "what": f"The default model {default} is not here yet.",
                "repair": f"It is fetched on first use, or now with `models get {default}`.",
            }
        )
    return rows


def _data(paths: DataPaths, problems: list[dict[str, str]]) -> dict[str, Any]:
    values: dict[str, Any] = {"folder": str(paths.root), "models_folder": str(paths.models)}
    try:
        paths.make()
        _probe(paths.root / f".probe-{os.getpid()}")
    except DataDirUnusable as error:
        problems.append({"what": error.cause, "repair": error.next_step})
        return values
    except OSError as error:
        what = f"The data directory {paths.root} cannot be written ({error})."
        problems.append({"what": what, "repair": _repair(error)})
        return values
    free = shutil.disk_usage(paths.root).free
    values["free_disk_bytes"] = free
    if free < LOW_DISK_BYTES:
        problems.append(
            {
                "what": f"Only {free / GIB:.1f} GiB are free on the disk.",
                "repair": "Free some space, or delete sessions with `delete`.",
            }
        )
    values["sessions"] = _sessions(paths, problems)
    return values


def _probe(file: Path) -> None:
    """Write a file, which does not stay. Raises OSError where nothing can be written."""
    try:
        file.write_bytes(b"x")
    finally:
        file.unlink(missing_ok=True)


def _repair(error: OSError) -> str:
    """What to do about a data directory that cannot be written."""
    from app.messages import EXIT_ROOM, explain

    message = explain(error)
    if message is not None and message.exit_code == EXIT_ROOM:
        return message.next_step
    return "Choose another with --data-dir."


def _sessions(paths: DataPaths, problems: list[dict[str, str]]) -> dict[str, Any]:
    from app.library import Library
    from app.messages import LIBRARY_REPAIR

    try:
        library = Library(paths)
        records = library.sessions()
        known = {record.id for record in records} | {record.document for record in records}
        known |= {document.sha256 for document in library.unread_documents()}
        (check,) = library.database.get().execute("PRAGMA quick_check(1)").fetchone()
        library.close()
    except (sqlite3.Error, AppError) as error:
        problems.append(
            {
                "what": f"The library {paths.database} cannot be read ({error}).",
                "repair": LIBRARY_REPAIR,
            }
        )
        return {}
    if check != "ok":
        problems.append(
            {
                "what": f"The library {paths.database} is damaged: {check}.",
                "repair": "Export what can be exported, then move the file away.",
            }
        )
    for record in records:
        missing = record.state == SESSION_READY and not paths.snapshot(record.id).is_dir()
        if record.state == SESSION_DAMAGED or missing:
            problems.append(
                {
                    "what": f"Session {record.id} ({record.title}) cannot be opened. "
                    f"{record.problem or 'Its snapshot is missing.'}",
                    "repair": f"Read it again: ask {record.id} --reread -q ...",
                }
            )
    problems += [
        {
            "what": f"The folder {folder} belongs to nothing in the library; it holds the text of "
            "a document.",
            "repair": "Delete it, or open the document again: what was read of it is then found.",
        }
        for folder in _ownerless(paths, known)
    ]
    return {
        "count": len(records),
        "snapshot_bytes": sum(record.snapshot_bytes for record in records),
    }


def _ownerless(paths: DataPaths, known: set[str]) -> list[Path]:
    """Folders of documents, snapshots and checkpoints; `known` are all that the library has."""
    folders = [*paths.documents.iterdir(), *paths.snapshots.iterdir()]
    found = [folder for folder in folders if _OWNED_NAME.fullmatch(folder.name)]
    return sorted(folder for folder in found if folder.name.partition(".")[0] not in known)


def _print_report(report: dict[str, Any]) -> None:
    print(f"Python      {report['python']}")
    for name, version in report["versions"].items():
        print(f"  {name:<14}{version or '-'}")
    if "device" in report:
        print(f"Device      {report['device']}: {report['cpu']}, {report['threads']} threads")
        if "gpu" in report:
            gpu = report["gpu"]
            print(
                f"GPU         {gpu['name']}, {gpu['free_bytes'] / GIB:.1f} of "
                f"{gpu['total_bytes'] / GIB:.1f} GiB free"
            )
        print(f"Memory      {report['memory_available_bytes'] / GIB:.1f} GiB available")
        form = report["compute_format"]
        print(f"Computing   {form['name']}: {form['reason']}")
        print(f"Answers     {report['answer_format']['reason']}")
        print(f"Kernels     {report['kernels']}")
        for row in report["models"]:
            print(f"Model       {row['name']}: {row['state']}")
    data = report["data"]
    print(f"Data        {data['folder']} (models in {data['models_folder']})")
    if "free_disk_bytes" in data:
        print(f"Disk        {data['free_disk_bytes'] / GIB:.1f} GiB free")
    if data.get("sessions"):
        sessions = data["sessions"]
        size = sessions["snapshot_bytes"] / 2**20
        print(f"Sessions    {sessions['count']}, {size:.0f} MiB")
    if not report["problems"]:
        print("\nNothing to repair.")
    for problem in report["problems"]:
        tell(f"\n! {problem['what']}\n  {problem['repair']}")
