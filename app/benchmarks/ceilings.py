"""What this machine can do at best, measured in the run whose figures stand beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from app.benchmarks.figures import clock, timed
from engine.geometry import ModelGeometry
from kernels.linear import linear, pack

SECONDS_EACH = 0.25
# Far more than the last cache level of today's processors, so that memory is what is read.
BANDWIDTH_BYTES = 256 << 20


def gemm_flops_per_s(
    geometry: ModelGeometry,
    rows: int,
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    packed: bool = False,
) -> float:
    """Operations a second of the best of several products of a chunk with a feed-forward matrix.

    Shape [rows, hidden] x [hidden, intermediate]; a multiplication and an addition count as two.
    packed  by weights in fp16, where the model reads from such
    """
    inner, columns = geometry.hidden_size, geometry.intermediate_size or geometry.hidden_size
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, generator=generator).to(device, dtype)
    weight = torch.randn(columns, inner, generator=generator).to(device, dtype)
    right = pack(weight, "fp16" if packed else "plain")
    seconds = _best(lambda: linear(left, right), device)
    return 2 * rows * inner * columns / seconds


def read_bytes_per_s(device: str = "cpu") -> float:
    """Bytes a second of the best of several sums over a block of memory that no cache holds."""
    block = torch.ones(BANDWIDTH_BYTES // 4, dtype=torch.float32, device=device)
    return float(block.nbytes / _best(block.sum, device))


def read_and_hash(folder: Path) -> tuple[float, int]:
    """Seconds to read all files of a folder and take their SHA-256, and their bytes."""

    def work() -> int:
        read = 0
        for path in sorted(folder.iterdir()):
            data = path.read_bytes()
            hashlib.sha256(data).digest()
            read += len(data)
        return read

    return timed(work)


def _best(work: Callable[[], object], device: str) -> float:
    """The shortest of the calls that fit into SECONDS_EACH, after one to set the library up."""
    work()
    best = float("inf")
    deadline = clock(device) + SECONDS_EACH
    while True:
        started = clock(device)
        work()
        ended = clock(device)
        best = min(best, ended - started)
        if ended >= deadline:
            return best
