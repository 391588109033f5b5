"""Models from the Hugging Face hub: safetensors and tokenizer files only, no code, no pickles."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from engine.errors import ModelDownloadFailed
from engine.fetch import is_offline
from engine.files import need_disk

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WANTED = [
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template*",
]  # fmt: skip


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name of a hub repository."""
    return HUB_ID.fullmatch(name) is not None


def cached_snapshot(repo: str, models_dir: Path) -> Path | None:
    """A complete snapshot already on this machine: the user's own hub cache, then models_dir."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    for cache_dir in (None, models_dir / "hub"):
        try:
            folder = snapshot_download(
                repo, cache_dir=cache_dir, allow_patterns=WANTED, local_files_only=True
            )
        except (LocalEntryNotFoundError, IncompleteSnapshotError):
            continue
        if is_whole(Path(folder)):
            return Path(folder)
    return None


def snapshot(
    repo: str, models_dir: Path, *, on_message: Callable[[str], None] | None = None
) -> Path:
    """Folder with a hub repository's model, downloaded into models_dir/hub if needed.

    The architecture is judged from config.json before any weight is fetched.
    Raises ModelDownloadFailed in one sentence, UnsupportedArchitecture, NotEnoughDisk.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, HTTPError
    from transformers import AutoConfig

    from engine.geometry import geometry_of
    from engine.gguf import quiet_transformers

    if (cached := cached_snapshot(repo, models_dir)) is not None:
        return cached
    if is_offline():
        raise ModelDownloadFailed(
            f"{repo} is not on this machine, and the offline switch HF_HUB_OFFLINE is on.",
            "Turn it off to download the model, or choose one that is here.",
        )
    cache_dir = models_dir / "hub"
    try:
        config_file = huggingface_hub.hf_hub_download(repo, "config.json", cache_dir=cache_dir)
        with quiet_transformers():
            geometry_of(AutoConfig.from_pretrained(config_file, trust_remote_code=False))
            plan = huggingface_hub.snapshot_download(
                repo, cache_dir=cache_dir, allow_patterns=WANTED, dry_run=True
            )
        assert isinstance(plan, list)
        if not any(str(file.filename).endswith(".safetensors") for file in plan):
            raise ModelDownloadFailed(
                f"{repo} has no safetensors weights.", "Choose a repository that has them."
            )
        nbytes = sum(file.file_size or 0 for file in plan if file.will_download)
        need_disk(cache_dir, nbytes, f"Downloading {repo}")
        if on_message:
            on_message(f"Downloading {repo} ({nbytes / 2**30:.1f} GiB).")
        return Path(
            huggingface_hub.snapshot_download(repo, cache_dir=cache_dir, allow_patterns=WANTED)
        )
    except (HTTPError, HFValidationError, OSError) as problem:
        raise _failure(repo, problem) from problem


def is_whole(folder: Path) -> bool:
    """Whether a model folder has its configuration and every shard its index names."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    return any(folder.glob("*.safetensors"))


def _failure(repo: str, problem: Exception) -> ModelDownloadFailed:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if isinstance(problem, GatedRepoError):
        return ModelDownloadFailed(
            f"{repo} asks you to accept its licence first.",
            f"Accept it at https://huggingface.co/{repo}, then run `hf auth login`.",
        )
    if isinstance(problem, RepositoryNotFoundError):
        return ModelDownloadFailed(
            f"The hub has no repository {repo}, or it is private.", "Check the name."
        )
    if isinstance(problem, EntryNotFoundError) and not isinstance(problem, LocalEntryNotFoundError):
        return ModelDownloadFailed(f"{repo} is not a model that can be loaded: no config.json.")
    return ModelDownloadFailed(
        f"Downloading {repo} failed: the hub cannot be reached.",
        f"Check the internet connection, then run `python launch.py models get {repo}`.",
    )
