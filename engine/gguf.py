"""GGUF is an import format here: converted once into bf16 safetensors, loaded from there after.

transformers dequantises GGUF at every load, which takes tens of seconds; the copy takes one or two.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.configuration import first_line
from engine.errors import EngineError, ModelCorrupt
from engine.files import (
    cached_sha256,
    disk_full,
    is_disk_full,
    locked,
    need_disk,
    publish,
    read_json,
)

if TYPE_CHECKING:
    from engine.geometry import ModelGeometry

CONVERSION_VERSION = 1
SIDECAR = "conversion.json"
# bf16 against the densest common block format (Q4: 0.56 bytes a weight), with the tokenizer.
GROWTH = 4.0
MAGIC = b"GGUF"
# The readers below us say with these what they miss: a block type, a tensor, a setting.
SAYING = (ValueError, KeyError, RuntimeError, IndexError, NotImplementedError)


def convert_once(
    gguf_path: Path,
    dest_dir: Path,
    *,
    sha256: str | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Path:
    """Folder under dest_dir with a bf16 safetensors copy of a GGUF file, converted if needed.

    sha256      of the file, if already checked; otherwise it is computed (and remembered)
    on_message  gets one sentence if a conversion starts, because it takes a minute or two
    Returns     folder with model.safetensors, config.json, tokenizer and chat template
    Raises      ModelCorrupt if the file cannot be read as GGUF, UnsupportedArchitecture,
                NotEnoughDisk; nothing is left behind then
    """
    if sha256 is None:
        sha256 = cached_sha256(gguf_path, dest_dir)
    final = converted_dir(dest_dir, sha256)
    if is_complete(final):
        return final
    with locked(dest_dir, final.name):
        if is_complete(final):  # another process was first
            return final
        need_disk(dest_dir, int(gguf_path.stat().st_size * GROWTH), "Converting the model")
        if on_message:
            on_message(f"Converting {gguf_path.name}. This happens once and takes a minute or two.")
        temporary = dest_dir / f".{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
        temporary.mkdir(parents=True)
        try:
            _convert(gguf_path, temporary, sha256)
            publish(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def converted_dir(dest_dir: Path, sha256: str) -> Path:
    """Where the converted copy of the GGUF file with this digest lives."""
    return dest_dir / f"gguf-{sha256[:16]}"


def is_complete(folder: Path) -> bool:
    """Whether a converted copy is there, of this version, with every file at its recorded size."""
    sidecar = read_json(folder / SIDECAR)
    if sidecar is None or sidecar.get("version") != CONVERSION_VERSION:
        return False
    sizes = sidecar.get("sizes")
    if not isinstance(sizes, dict):
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in sizes.items()
    )


def source_digest(folder: Path) -> str | None:
    """SHA-256 of the GGUF a folder was converted from, or None if it is no converted copy."""
    sidecar = read_json(folder / SIDECAR)
    return str(sidecar["source_sha256"]) if sidecar and "source_sha256" in sidecar else None


def _convert(gguf_path: Path, folder: Path, sha256: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from engine.geometry import geometry_of

    with gguf_path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ModelCorrupt(
                f"{gguf_path.name} is not a GGUF file.", "Download it again, or choose another."
            )
    where = {
        "pretrained_model_name_or_path": str(gguf_path.parent),
        "gguf_file": gguf_path.name,
        "local_files_only": True,
    }
    try:
        with quiet_transformers(), _one_silent_reading():
            config = AutoConfig.from_pretrained(**where)
            _refuse_hollow(gguf_path, geometry_of(config))
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(
                **where, config=config, dtype=torch.bfloat16
            )
    except (EngineError, MemoryError):
        raise
    except SAYING as problem:
        raise ModelCorrupt(
            f"{gguf_path.name} cannot be read: {first_line(problem)}",
            "Download the file again, or choose one in another quantisation.",
        ) from problem
    except Exception as problem:  # a damaged number fails wherever it is used, in any way
        if is_disk_full(problem):
            raise
        raise ModelCorrupt(
            f"{gguf_path.name} is cut off or damaged.", "Download the file again."
        ) from problem
    _write_weights(model, folder)
    settings = model.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        settings.pop(key, None)
    (folder / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True))
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sidecar = {
        "version": CONVERSION_VERSION,
        "source": gguf_path.name,
        "source_sha256": sha256,
        "sizes": {p.name: p.stat().st_size for p in sorted(folder.iterdir())},
    }
    (folder / SIDECAR).write_text(json.dumps(sidecar, indent=1))


def _refuse_hollow(gguf_path: Path, geometry: ModelGeometry) -> None:
    """Raise ModelCorrupt if a file is too small for its own settings, before a model is built.

    No block type takes less than a bit a weight: a damaged count of layers would fill the memory.
    """
    from engine.weights import linear_parameters

    if linear_parameters(geometry) > 8 * gguf_path.stat().st_size:
        raise ModelCorrupt(
            f"{gguf_path.name} is cut off or damaged: it is too small for the model it describes.",
            "Download the file again.",
        )


def _write_weights(model: Any, folder: Path) -> None:
    """Plain bf16 tensors; the tied output matrix is left out, as transformers expects."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    packed = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    if packed:
        raise ModelCorrupt(
            f"Tensor {packed[0]} stays packed after dequantising.",
            "Choose a safetensors version of this model.",
        )
    plain = {name: tensor.bfloat16().contiguous() for name, tensor in state.items()}
    try:
        save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as problem:
        if is_disk_full(problem):
            raise disk_full("Converting the model") from problem
        raise


@contextmanager
def _one_silent_reading() -> Iterator[None]:
    """Inside, transformers parses a GGUF header once, not three times, and draws no bar for it.

    One parse of a vocabulary of 150,000 tokens takes about ten seconds.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as importer

    reader, bar = gguf.GGUFReader, importer.tqdm
    gguf.GGUFReader = functools.cache(reader)  # type: ignore[misc,assignment]
    importer.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        gguf.GGUFReader = reader  # type: ignore[misc]
        importer.tqdm = bar


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or advice on standard error while transformers works; state is restored."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
