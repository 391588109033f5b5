"""A cache on disk: safetensors and a manifest, written whole or not at all, checked when read.

A folder holds `manifest.json`, `layers-NNN.safetensors` (several layers each) and
`state.safetensors` (token ids, last logits, probe, the scorer's state). It is written beside its
place, flushed to the disk and renamed; nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from engine import manifest as manifests
from engine.cache import DocCache, LayerCache
from engine.errors import SnapshotCorrupt
from engine.files import fsync, need_disk, sha256_of
from engine.manifest_form import FLOATS, SIDES
from engine.prefill import PrefillConfig
from engine.quantisation import QuantConfig
from engine.rows import Rows
from engine.stored_entries import halved, packed_entries, unpacked_entries
from engine.stored_floats import HIGH, LOW, packed_floats, unpacked_floats
from engine.tensor_form import check_tensors
from engine.trunk import hidden_after
from kernels.quantise import Codes, Frame

if TYPE_CHECKING:
    from engine.loader import LoadedModel

_Found = TypeVar("_Found")
LAYERS_PER_FILE = 8
MOST_THREADS = 4
PROBE_TOKENS = 1  # one forward pass reads every kept entry; more tokens only cost time
PROBE_VOCABULARY_STEP = 16  # every so many logits are compared
# Share of the probe logits' range by which two machines or number formats may differ.
PROBE_TOLERANCE = 0.02
_STATE_FILE = "state.safetensors"
_FREE_BYTES_MARGIN = 64 * 1024 * 1024
_SIDES = [[side] for side in SIDES]  # the names of a layer's floats, and packed ones
_LOWS = [(side + LOW).split(".") for side in SIDES]
_SOME = slice(None, None, PROBE_VOCABULARY_STEP)


def save_snapshot(
    folder: Path,
    cache: DocCache,
    *,
    model: LoadedModel,
    scorer: str,
    config: PrefillConfig,
    extra: dict[str, Any],
    goes_on: bool = False,
) -> int:
    """Write a cache, finished or not, to `folder`; replaces what was there. Returns bytes written.

    scorer   the scorer's digest; extra: plain JSON values the caller wants back and compared
    goes_on  a frozen cache that will still be pruned by its scores, so that they stay exact
    Raises   NotEnoughDisk before anything is written
    """
    need_disk(folder.parent, cache.nbytes + _FREE_BYTES_MARGIN, "Saving the session")
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        files, tensors = {}, {}
        for name, parts in _contents(cache, model, finished=cache.frozen and not goes_on):
            files[name] = _write_tensors(temporary / name, parts)
            tensors.update({key: _tensor_record(name, part) for key, part in parts.items()})
        manifest = manifests.describe(
            cache,
            model=model,
            scorer=scorer,
            config=config,
            extra=extra,
            files=files,
            tensors=tensors,
        )
        fsync(manifests.write(temporary, manifest))
        fsync(temporary)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sum(f.stat().st_size for f in folder.iterdir())


def load_snapshot(
    folder: Path, *, model: LoadedModel, expect: dict[str, Any] | None = None
) -> tuple[DocCache, dict[str, Any]]:
    """Read a cache back and prove it: checksums, shapes, fingerprint, invariants, and a probe.

    expect   fields (of `extra`, or of the manifest itself) that must have these values
    Returns  the cache (frozen if it was finished) and the manifest
    Raises   SnapshotCorrupt naming the file, SnapshotMismatch naming the field
    """
    recover_folder(folder)
    manifest = manifests.read(folder)
    manifests.check_fit(manifest, model, expect or {})
    manifests.check_shapes(manifest, model.geometry)
    tensors: dict[str, Tensor] = {}
    for name, record in manifest["files"].items():
        found = _read_tensors(folder, name, record, manifest["tensors"])
        check_tensors(name, found)
        tensors |= _unpacked(name, found, manifest["quantisation"]["dtype"])
    cache = _rebuilt(manifest, tensors, model)
    if manifest["complete"]:
        cache.freeze()
        _check_probe(cache, model, tensors)
    return cache, manifest


def check_files(folder: Path) -> None:
    """See whether a snapshot's files are what its manifest says, sizes and checksums; no model is
    needed, and nothing of it stays in memory.

    Raises SnapshotError where they are not.
    """
    for name, record in manifests.read(folder)["files"].items():
        path = folder / _plain_name(name)
        try:
            if path.stat().st_size != record["nbytes"]:
                raise SnapshotCorrupt(name, "has another size")
            intact = sha256_of(path) == record["sha256"]
        except OSError as error:
            raise SnapshotCorrupt(name, f"cannot be read ({error.strerror})") from error
        if not intact:
            raise SnapshotCorrupt(name, "fails its checksum")


def _contents(
    cache: DocCache, model: LoadedModel, *, finished: bool
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """File names, and by its name each tensor of the file, on the CPU; one file at a time."""
    for first in range(0, len(cache.layers), LAYERS_PER_FILE):
        parts: dict[str, Tensor] = {}
        for number, layer in enumerate(cache.layers[first : first + LAYERS_PER_FILE], first):
            found = _layer_tensors(layer, finished=finished)
            parts |= {f"{number:03d}.{name}": t.cpu().contiguous() for name, t in found.items()}
        yield (
            f"layers-{first // LAYERS_PER_FILE:03d}.safetensors",
            _packed(parts) if finished else parts,
        )
    state = {"token_ids": cache.token_ids.to(torch.int32)}
    if cache.last_logits is not None:
        logits = cache.last_logits.cpu()
        state["last_logits"] = halved(logits) if finished else logits
    if cache.frozen:
        state["probe_logits"] = _probe_logits(cache, model)
    state |= {f"scorer.{key}": t.cpu().contiguous() for key, t in cache.scorer_state.items()}
    yield _STATE_FILE, state


def _packed(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors with their keys and values in fewer bytes."""
    sides = [name for name in parts if name.split(".")[1:] in _SIDES]
    packed = _at_once(lambda name: packed_floats(name, parts[name]), sides)
    rest = {name: t for name, t in parts.items() if name not in sides}
    return {name: t for found in (rest, *packed) for name, t in found.items()}


def _unpacked(file: str, parts: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The inverse of `_packed`. Raises SnapshotCorrupt where parts do not fit together."""
    sides = [name.removesuffix(LOW) for name in parts if name.split(".")[1:] in _LOWS]
    try:
        found = _at_once(lambda name: unpacked_floats(name, parts, FLOATS[dtype]), sides)
    except (KeyError, AssertionError) as error:
        raise SnapshotCorrupt(file, f"holds parts that do not fit together ({error})") from error
    packed = {name + end for name in sides for end in (LOW, HIGH)}
    rest = {name: t for name, t in parts.items() if name not in packed}
    return rest | dict(zip(sides, found, strict=True))


def _at_once(work: Callable[[str], _Found], names: Sequence[str]) -> list[_Found]:
    """work of every name, in a few threads: zlib lets others run meanwhile."""
    with ThreadPoolExecutor(min(MOST_THREADS, torch.get_num_threads())) as pool:
        return list(pool.map(work, names))


def _layer_tensors(layer: LayerCache, *, finished: bool) -> dict[str, Tensor]:
    """A layer by its names in the file."""
    found = packed_entries(layer.positions, layer.scores, layer.offsets, finished=finished)
    for side in SIDES:
        found |= _side_tensors(side, getattr(layer, side))
    return found


def _side_tensors(side: str, rows: Rows) -> dict[str, Tensor]:
    """A layer's keys or values by their names in the file."""
    found = {side: rows.fine}
    if rows.codes is not None:
        codes = rows.codes
        found |= {f"{side}.codes": codes.codes, f"{side}.step": codes.step}
        found[f"{side}.zero"] = codes.zero
    if rows.frame is not None:
        found |= {f"{side}.centre": rows.frame.centre, f"{side}.spread": rows.frame.spread}
    return found


def _side(
    side: str, tensors: dict[str, Tensor], offsets: list[int], n_coded: list[int], bits: int
) -> Rows:
    """The inverse of `_side_tensors`."""
    coded = frame = None
    if sum(n_coded):
        codes, step, zero = (tensors[f"{side}.{part}"] for part in ("codes", "step", "zero"))
        coded = Codes(codes, step, zero, bits)
    if f"{side}.centre" in tensors:
        frame = Frame(tensors[f"{side}.centre"], tensors[f"{side}.spread"])
    return Rows(tensors[side], tuple(offsets), tuple(n_coded), coded, frame)


def _probe_logits(cache: DocCache, model: LoadedModel) -> Tensor:
    """What the model predicts after the document's first tokens, asked again on top of it.

    Some of the logits: what a wrong cache, rotary or weight does to one it does to the rest, and
    the whole output head is a fifth of a small model's bytes.
    """
    hidden = hidden_after(model, cache.token_ids[:PROBE_TOKENS], cache.view())[-1]
    head = model.model.lm_head
    with torch.inference_mode():
        if type(head) is nn.Linear and head.bias is None:
            found = nn.functional.linear(hidden, head.weight[_SOME])
        else:
            found = head(hidden)[_SOME]
    return found.float().cpu().contiguous()


def _check_probe(cache: DocCache, model: LoadedModel, tensors: dict[str, Tensor]) -> None:
    stored = tensors.get("probe_logits")
    if stored is None or stored.dim() != 1 or not len(stored):
        raise SnapshotCorrupt(_STATE_FILE, "holds no probe")
    found = _probe_logits(cache, model)
    if len(stored) == model.model.lm_head.out_features:  # before version 3 all were stored
        stored = stored[_SOME]
    allowed = PROBE_TOLERANCE * float(stored.max() - stored.min())
    worst = float((stored - found).abs().max()) if found.shape == stored.shape else float("inf")
    if not worst <= allowed:
        raise SnapshotCorrupt(_STATE_FILE, f"fails its probe (off by {worst:.3g})")


def _write_tensors(path: Path, parts: dict[str, Tensor]) -> dict[str, Any]:
    from safetensors.torch import save

    data = save(parts)
    path.write_bytes(data)
    fsync(path)
    return {"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _tensor_record(file: str, tensor: Tensor) -> dict[str, Any]:
    return {
        "file": file,
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype),
        "sha256": _sum(tensor),
    }


def _sum(tensor: Tensor) -> str:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(raw).hexdigest()


def _plain_name(name: str) -> str:
    """The name of a file that lies in the snapshot. Raises SnapshotCorrupt."""
    if Path(name).name != name:
        raise SnapshotCorrupt(manifests.MANIFEST_NAME, f"names a file outside the snapshot: {name}")
    return name


def _read_tensors(
    folder: Path, name: str, record: dict[str, Any], known: dict[str, Any]
) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    _plain_name(name)
    try:
        data = (folder / name).read_bytes()
    except (OSError, ValueError):  # a name may hold what no file's name can
        raise SnapshotCorrupt(name, "is missing or unreadable") from None
    if len(data) != record["nbytes"]:
        raise SnapshotCorrupt(name, f"has {len(data)} bytes instead of {record['nbytes']}")
    intact = hashlib.sha256(data).hexdigest() == record["sha256"]
    try:
        tensors: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise SnapshotCorrupt(name, f"is not readable ({error})") from error
    if not intact:
        damaged = [k for k, t in tensors.items() if known.get(k, {}).get("sha256") != _sum(t)]
        raise SnapshotCorrupt(name, f"fails its checksum ({', '.join(damaged) or 'header'})")
    return tensors


def _rebuilt(manifest: dict[str, Any], tensors: dict[str, Tensor], model: LoadedModel) -> DocCache:
    try:
        last = tensors.get("last_logits")
        quant = manifest["quantisation"]
        device = torch.device(model.device)
        numbers = range(len(manifest["offsets"]))
        layers = [_layer(manifest, tensors, number, device) for number in numbers]
        cache = DocCache(
            model.geometry,
            model.rotary,
            manifest["positions_mode"],
            model.compute_dtype,
            layers,
            tensors["token_ids"].to(torch.int64),
            None if last is None else last.float(),
            _scorer_state(tensors, device),
            QuantConfig(quant["k_bits"], quant["v_bits"], quant["recent_tokens"]),
        )
        cache.check()
        assert last is None or len(last) == model.model.lm_head.out_features, "last_logits"
    except (KeyError, AssertionError) as error:
        raise SnapshotCorrupt(
            manifests.MANIFEST_NAME, f"does not fit its tensors ({error})"
        ) from error
    ids_sum = hashlib.sha256(cache.token_ids.numpy().tobytes()).hexdigest()
    if cache.n_seen != manifest["n_seen"] or ids_sum != manifest["token_ids_sha256"]:
        raise SnapshotCorrupt(_STATE_FILE, "holds other token ids than the manifest says")
    return cache


def _layer(
    manifest: dict[str, Any], tensors: dict[str, Tensor], number: int, device: torch.device
) -> LayerCache:
    """One layer's entries on the device."""
    own, quant = f"{number:03d}.", manifest["quantisation"]
    parts = {k.removeprefix(own): t.to(device) for k, t in tensors.items() if k.startswith(own)}
    offsets, n_coded = manifest["offsets"][number], manifest["n_coded"]
    keys = _side("keys", parts, offsets, n_coded["keys"][number], quant["k_bits"])
    values = _side("values", parts, offsets, n_coded["values"][number], quant["v_bits"])
    return LayerCache(keys, values, *unpacked_entries(parts, offsets))


def _scorer_state(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """What the scorer goes on from, where the layers are: it adds the next chunk to it."""
    own = "scorer."
    return {k.removeprefix(own): t.to(device) for k, t in tensors.items() if k.startswith(own)}


def replace_folder(new: Path, place: Path) -> None:
    """Put a finished folder in its place. A crash leaves the old one, the new one, or `.old`."""
    old = place.with_name(f"{place.name}.old")
    recover_folder(place)
    if place.exists():
        os.rename(place, old)
    os.rename(new, place)
    fsync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(place: Path) -> None:
    """Undo a replacement that was cut off between its two renames."""
    old = place.with_name(f"{place.name}.old")
    if old.exists():
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, place)
