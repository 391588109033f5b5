"""16-bit floats as a finished session holds them: fewer bytes, not a bit lost.

Two thirds of the bytes are left in bf16, five sixths in fp16, whose high byte holds more digits.

The high byte of a float is its sign and most of its exponent, and within one channel of keys or
values the exponents are much alike; the low byte is as good as noise. So the two are stored apart,
the high bytes channel after channel and deflated. Strings of them repeat less than single ones, so
that run lengths and Huffman's code are all that zlib is asked for. Bytes are moved by numpy: these
functions are called from several threads, and each of them would bring torch's threads with it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST_NBYTES = 4096  # below this it is not worth two more tensors in a file
_MEMORY_LEVEL = 9  # the most: longest blocks of one code
LOW, HIGH = ".low", ".high"


def packed_floats(name: str, rows: Tensor) -> dict[str, Tensor]:
    """Rows [n, d] on the CPU by the names they are stored under: as they are if that is smaller."""
    if rows.element_size() != 2 or rows.nbytes < LEAST_NBYTES:
        return {name: rows}
    split = rows.contiguous().view(torch.uint8).numpy().reshape(*rows.shape, 2)
    coder = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, _MEMORY_LEVEL, zlib.Z_RLE)
    high = coder.compress(split[..., 1].T.tobytes()) + coder.flush()
    if 2 * len(high) >= rows.nbytes:
        return {name: rows}
    packed = torch.frombuffer(bytearray(high), dtype=torch.uint8)
    low = torch.from_numpy(np.ascontiguousarray(split[..., 0]))
    return {name + LOW: low, name + HIGH: packed}


def unpacked_floats(name: str, parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The inverse: [n, d] in `dtype`, which is what was stored.

    Raises KeyError where a part is missing, AssertionError where one is not what it should be.
    """
    if name in parts:
        return parts[name]
    low, high = parts[name + LOW], parts[name + HIGH]
    assert dtype.itemsize == 2, f"{name} is stored as 16-bit floats"
    assert low.dtype == high.dtype == torch.uint8 and low.dim() == 2, f"{name} has odd parts"
    n, dim = low.shape
    assert n * dim > 0, f"{name} is empty"
    planes = np.empty((n, dim, 2), dtype=np.uint8)
    planes[..., 0] = low.numpy()
    planes[..., 1] = _inflated(name, high, n * dim).reshape(dim, n).T
    return torch.from_numpy(planes.reshape(n, 2 * dim)).view(dtype)


def _inflated(name: str, packed: Tensor, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Exactly so many bytes; what would grow beyond them is refused before it does."""
    coder = zlib.decompressobj()
    try:
        found = coder.decompress(packed.contiguous().numpy(), nbytes + 1)
    except zlib.error as error:
        raise AssertionError(f"{name} cannot be inflated: {error}") from error
    assert coder.eof and len(found) == nbytes, f"{name} does not inflate to {nbytes} bytes"
    return np.frombuffer(found, dtype=np.uint8)
