"""The form of a snapshot's tensors: dimensions and types by name, checked before one is used.

Checksums tell damage from what was written; they say nothing of who wrote it, and a session file
may come from anywhere. How many rows there are is checked against the manifest by the cache itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.errors import SnapshotCorrupt
from engine.stored_floats import HIGH, LOW

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_Form = tuple[int, tuple[torch.dtype, ...]]
_OF_LAYER: dict[str, _Form] = {
    "scores": (1, (torch.float16, torch.float32)),
    "positions": (1, (torch.int32,)),
    "gaps": (1, (torch.uint16,)),
}
_OF_SIDE: dict[str, _Form] = {
    "": (2, _FLOATS),
    ".codes": (2, (torch.uint8,)),
    ".step": (2, (torch.float16,)),
    ".zero": (2, (torch.float16,)),
    ".centre": (2, (torch.float32,)),
    ".spread": (2, (torch.float32,)),
    LOW: (2, (torch.uint8,)),
    HIGH: (1, (torch.uint8,)),
}
_OF_STATE: dict[str, _Form] = {
    "token_ids": (1, (torch.int32, torch.int64)),
    "last_logits": (1, (torch.float16, torch.float32)),
    "probe_logits": (1, (torch.float32,)),
}


def check_tensors(file: str, parts: Mapping[str, Tensor]) -> None:
    """Raise SnapshotCorrupt if a tensor has a name, dimensions or a type that none can have."""
    for name, tensor in parts.items():
        if name.startswith("scorer."):
            continue
        form = _form(name)
        if form is None:
            raise SnapshotCorrupt(file, f"holds a tensor of no known name ({name})")
        n_dims, dtypes = form
        if tensor.dim() != n_dims or tensor.dtype not in dtypes:
            shape = list(tensor.shape)
            raise SnapshotCorrupt(file, f"holds {name} as {shape} of {tensor.dtype}")


def _form(name: str) -> _Form | None:
    if name in _OF_STATE:
        return _OF_STATE[name]
    layer, _, own = name.partition(".")
    if not layer.isdigit():
        return None
    for side in ("keys", "values"):
        if own.startswith(side):
            return _OF_SIDE.get(own.removeprefix(side))
    return _OF_LAYER.get(own)
