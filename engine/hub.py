"""Models from the Hugging Face hub: safetensors and tokenizer files only, no code, no pickles."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from engine.configuration import read_config
from engine.errors import EngineError, ModelDownloadFailed
from engine.fetch import POLL_S, OnProgress, bytes_under, is_offline
from engine.files import disk_full, is_disk_full, need_disk, read_json

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
WANTED = [
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template*",
]  # fmt: skip


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name of a hub repository, by the hub's own rules too."""
    if HUB_ID.fullmatch(name) is None:
        return False
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def cached_snapshot(repo: str, models_dir: Path) -> Path | None:
    """A complete snapshot already on this machine: the user's own hub cache, then models_dir."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
    )

    for cache_dir in (None, models_dir / "hub"):
        try:
            folder = snapshot_download(
                repo, cache_dir=cache_dir, allow_patterns=WANTED, local_files_only=True
            )
        except (LocalEntryNotFoundError, IncompleteSnapshotError, HFValidationError):
            continue
        if is_whole(Path(folder)):
            return Path(folder)
    return None


def snapshot(
    repo: str,
    models_dir: Path,
    *,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Path:
    """Folder with a hub repository's model, downloaded into models_dir/hub if needed.

    The architecture is judged from config.json before any weight is fetched. An interrupted
    download goes on where it was.

    on_progress  bytes done and in all; an exception it raises ends the download after this file
    on_message   sentences worth showing: what is downloaded, and that a stop waits for this file
    Raises       ModelDownloadFailed in one sentence, UnsupportedArchitecture, ModelCorrupt,
                 NotEnoughDisk
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, HTTPError

    if (cached := cached_snapshot(repo, models_dir)) is not None:
        return cached
    if is_offline():
        raise ModelDownloadFailed(
            f"{repo} is not on this machine, and the offline switch HF_HUB_OFFLINE is on.",
            "Turn it off to download the model, or choose one that is here.",
        )
    cache_dir = models_dir / "hub"
    try:
        with _quiet_hub():
            config_file = huggingface_hub.hf_hub_download(repo, "config.json", cache_dir=cache_dir)
            folder = Path(config_file).parent
            read_config(folder)
            plan = huggingface_hub.snapshot_download(
                repo,
                revision=folder.name,
                cache_dir=cache_dir,
                allow_patterns=WANTED,
                dry_run=True,
            )
            if not any(file.filename.endswith(".safetensors") for file in plan):
                raise ModelDownloadFailed(
                    f"{repo} has no safetensors weights.", "Choose a repository that has them."
                )
            sizes = {file.filename: file.file_size or 0 for file in plan if file.will_download}
            nbytes = sum(sizes.values())
            need_disk(cache_dir, nbytes, f"Downloading {repo}")
            if on_message:
                on_message(f"Downloading {repo} ({nbytes / 2**30:.1f} GiB).")
            _download(repo, folder, list(sizes), nbytes, on_progress, on_message)
    except (HTTPError, HFValidationError, OSError) as problem:
        raise _failure(repo, cache_dir, problem) from problem
    return folder


def fetch_file(repo: str, suffixes: tuple[str, ...], models_dir: Path) -> Path:
    """The one file of a hub repository whose name ends in one of `suffixes`, downloaded if needed.

    Raises ModelDownloadFailed if the hub cannot be reached or there is not exactly one such file,
    NotEnoughDisk.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    cache_dir = models_dir / "hub"
    try:
        with _quiet_hub():
            if is_offline():
                folder = huggingface_hub.snapshot_download(
                    repo, cache_dir=cache_dir, local_files_only=True
                )
                names = sorted(p.name for p in Path(folder).iterdir())
            else:
                names = huggingface_hub.list_repo_files(repo)
            found = [name for name in names if name.endswith(suffixes)]
            if len(found) != 1:
                raise ModelDownloadFailed(f"{repo} has {len(found)} files of weights, not one.")
            return Path(huggingface_hub.hf_hub_download(repo, found[0], cache_dir=cache_dir))
    except (HTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as problem:
        failure = _failure(repo, cache_dir, problem)
        if _failure_here(repo, cache_dir, problem) is None:
            failure.next_step = "Check the name and the connection, or choose another scorer."
        raise failure from problem


def _download(
    repo: str,
    folder: Path,
    names: list[str],
    nbytes: int,
    on_progress: OnProgress | None,
    on_message: Callable[[str], None] | None,
) -> None:
    """Fetch files of one commit in a thread, and report from this one how the cache grows."""
    import huggingface_hub

    blobs, cache_dir = folder.parents[1] / "blobs", folder.parents[2]
    before, stopped = bytes_under(blobs), threading.Event()

    def work() -> None:
        for name in names:
            if stopped.is_set():
                return
            huggingface_hub.hf_hub_download(repo, name, revision=folder.name, cache_dir=cache_dir)

    with ThreadPoolExecutor(1, "hub") as pool:
        job = pool.submit(work)
        try:
            while not wait([job], timeout=POLL_S).done:
                if on_progress:
                    on_progress(min(bytes_under(blobs) - before, nbytes), nbytes)
        except BaseException:
            stopped.set()
            if on_message:
                on_message("Stopping once this file is complete; what is here is kept.")
            raise
    try:
        job.result()
    except RuntimeError as problem:  # how the library for large files, in Rust, says all it says
        raise OSError(str(problem)) from problem
    if on_progress:
        on_progress(nbytes, nbytes)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """No bars and no retry notes on standard error; the failure itself is raised and reported."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    level, hidden = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not hidden:
            enable_progress_bars()


def is_whole(folder: Path) -> bool:
    """Whether a model folder has its configuration and every shard its index names."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    shard_of = (read_json(index) or {}).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:  # a damaged index
        return False
    names = list(shard_of.values())
    return all(isinstance(name, str) for name in names) and all(
        (folder / name).is_file() for name in set(names)
    )


def _failure_here(repo: str, folder: Path, problem: Exception) -> EngineError | None:
    """The refusal for what failed on this machine's own disk; None if it was not that."""
    if is_disk_full(problem):
        return disk_full(f"Downloading {repo}")
    if isinstance(problem, OSError) and problem.errno in FORBIDDEN:
        return ModelDownloadFailed(
            f"Downloading {repo} failed: {problem.filename or folder} may not be written.",
            "Change its permissions, or choose another folder with --data-dir.",
        )
    return None


def _failure(repo: str, folder: Path, problem: Exception) -> EngineError:
    """The refusal for a download into `folder` that failed."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if (here := _failure_here(repo, folder, problem)) is not None:
        return here
    if isinstance(problem, HFValidationError):
        return ModelDownloadFailed(
            f"'{repo}' is not the id of a hub repository.", "Check the name: an id is owner/name."
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
