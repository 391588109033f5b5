"""What a model needs in memory at a budget, as plain sums, and what the machine has.

Every term is a formula a reader can check by hand; activations are an upper estimate.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import cast

from engine.geometry import ModelGeometry

# torch, transformers and the interpreter: measured 0.45 GiB resident before a model is loaded.
OVERHEAD_BYTES = 512 << 20
POSITION_BYTES = 4
SCORE_BYTES = 4
STRETCH_ROWS = 8192  # of a head's kept entries: a chunk attends to so many at a time
PIECE_ROWS = 2048  # of keys or values: so many are in fp32 at a time, however long their head is
LOGIT_ROWS = 2  # the last row, and its copy in fp32 while a token is chosen


def terms(
    geometry: ModelGeometry,
    weights_bytes: int,
    budget_tokens: int,
    chunk_tokens: int,
    *,
    kv_bytes_per_value: float = 2,
    compute_bytes: int = 2,
    heads_bytes: int = 0,
    in_tiles: bool = False,
) -> dict[str, int]:
    """Bytes needed while a document is read, by purpose.

    budget_tokens        entries kept per layer and KV head, on average
    kv_bytes_per_value   2 for bf16, 4 for fp32, 0.5625 for 4 bits in groups of 64
    compute_bytes        of one activation value: 2 for bf16, 4 for fp32
    heads_bytes          retaining heads, as loaded
    in_tiles             whether attention never holds all scores, as on the CPU

    weights      as given
    heads        as given
    kv_cache     budget x 2 x layers x KV heads x head_dim x kv_bytes_per_value
    kv_index     budget x layers x KV heads x (position + score)
    chunk_kv     the chunk being read, before eviction, in the compute format
    activations  one layer at a time: residual and its copies (4 x hidden), queries with their
                 fp32 rotation, keys and values, three feed-forward rows
    attention    fp32 scores of one KV head's query group against cache and chunk, and their copy;
                 in tiles: a stretch of its keys and values, as decoded and turned, and what its
                 queries have so far, get from a stretch and have afterwards, in fp32
    logits       rows x vocabulary x fp32
    overhead     libraries and interpreter
    """
    slots = geometry.n_layers * geometry.n_kv_heads
    q_width = geometry.n_q_heads * geometry.head_dim
    kv_width = geometry.n_kv_heads * geometry.head_dim
    row = 4 * geometry.hidden_size + 3 * geometry.intermediate_size + 2 * q_width + 2 * kv_width
    group, visible = geometry.n_q_heads // geometry.n_kv_heads, budget_tokens + chunk_tokens
    attention = 2 * 4 * chunk_tokens * group * visible
    if in_tiles:
        stretch = 2 * min(STRETCH_ROWS, visible) * (compute_bytes + 4)
        attention = geometry.head_dim * (stretch + 3 * 4 * chunk_tokens * group)
    return {
        "weights": weights_bytes,
        "heads": heads_bytes,
        "kv_cache": budget_tokens * geometry.kv_bytes_per_token(kv_bytes_per_value),
        "kv_index": budget_tokens * slots * (POSITION_BYTES + SCORE_BYTES),
        "chunk_kv": chunk_tokens * geometry.kv_bytes_per_token(compute_bytes),
        "activations": chunk_tokens * (row * compute_bytes + 4 * (q_width + kv_width)),
        "attention": attention,
        "logits": LOGIT_ROWS * 4 * geometry.vocab_size,
        "overhead": OVERHEAD_BYTES,
    }


def readable_nbytes(geometry: ModelGeometry, budget_tokens: int, compute_bytes: int) -> int:
    """The finished cache as questions read it: decoded, rotated, in the computing format."""
    return budget_tokens * geometry.kv_bytes_per_token(compute_bytes)


def total(parts: Mapping[str, int]) -> int:
    """Sum of the terms in bytes."""
    return sum(parts.values())


def fits(parts: Mapping[str, int], available_bytes: int) -> bool:
    """Whether the sum of the terms stays within the memory there is."""
    return total(parts) <= available_bytes


def available_memory(device: str = "cpu") -> int:
    """Bytes that can still be taken: free GPU memory, or main memory without swapping.

    Main memory respects the limit of a container (cgroup v2 or v1).
    """
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(torch.device(device))
        # What torch has taken from the card and holds for its next tensors can be had as well.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + unused
    return min(_system_available(), *_container_rooms())


def give_back_freed() -> None:
    """Let the C library return to the system what it holds of freed memory; does so with glibc.

    A reading allocates and frees without end, and what lies free in pieces is not used again.
    """
    trim = _glibc_trim()
    if trim is not None:
        trim(0)


@cache
def _glibc_trim() -> Callable[[int], int] | None:
    found = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    return cast("Callable[[int], int] | None", found)


def _system_available() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if os.name == "nt":
        return _windows_available()
    # macOS tells only the total; half of it is a cautious guess at what others leave.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _windows_available() -> int:
    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "available", "page_total", "page_available",
                         "virtual_total", "virtual_available", "extended")
        ]  # fmt: skip

    status = Status()
    status.length = ctypes.sizeof(Status)
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status.available)


def _container_rooms() -> list[int]:
    """What the limits of a surrounding container leave; an absurdly large number means none."""
    base = Path("/sys/fs/cgroup")
    pairs = [
        (base / "memory.max", base / "memory.current", base / "memory.stat"),
        (
            base / "memory/memory.limit_in_bytes",
            base / "memory/memory.usage_in_bytes",
            base / "memory/memory.stat",
        ),
    ]
    rooms = [1 << 62]
    for limit_file, used_file, stat_file in pairs:
        if not (limit_file.is_file() and used_file.is_file()):
            continue
        limit = limit_file.read_text().strip()
        if limit.isdigit():
            used = int(used_file.read_text())
            rooms.append(int(limit) - used + _reclaimable(stat_file))
    return rooms


def _reclaimable(stat_file: Path) -> int:
    """File pages a container's usage counts but gives back under pressure."""
    if not stat_file.is_file():
        return 0
    for line in stat_file.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
