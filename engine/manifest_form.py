"""What a snapshot's manifest must look like, whatever it says: its keys, and their kinds.

The seal of a manifest proves that it is as it was written, not who wrote it: an imported session
brings its own. So nothing is read from one before it has this form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from engine.quantisation import BITS

SIDES = ("keys", "values")
FLOATS = {str(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
POSITIONS_MODES = ("original", "compact", "shared")
_LARGEST_COUNT = 2**31 - 1  # of tokens and entries; positions are int32

Check = Callable[[Any], bool]
Form = Mapping[str, tuple[str, Check]]  # by its key: what a value should be, and whether it is


def fault_of(manifest: dict[str, Any], *, quantised: bool = True) -> str | None:
    """What is wrong with a manifest's form, as a predicate for the user; None if nothing is.

    quantised  False for the first version, which knew no quantised entries
    """
    form = _FORM if quantised else {k: v for k, v in _FORM.items() if k != "n_coded"}
    later = {} if quantised else {"recent_tokens": 0}
    quantisation = manifest.get("quantisation")
    fault = _fault(manifest, form, "")
    if fault is None and isinstance(quantisation, dict):
        fault = _fault({**quantisation, **later}, _QUANTISATION, "quantisation.")
    return fault


def _fault(values: dict[str, Any], form: Form, prefix: str) -> str | None:
    for name, (what, is_so) in form.items():
        if name not in values:
            return f"has no {prefix}{name}"
        if not is_so(values[name]):
            return f"holds something other than {what} as {prefix}{name}"
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0  # a bool is an int to isinstance


def _is_count(value: Any) -> bool:
    return _is_size(value) and value <= _LARGEST_COUNT


def _is_bits(value: Any) -> bool:
    return _is_size(value) and value in BITS


def _one_of(words: Mapping[str, Any] | tuple[str, ...]) -> Check:
    return lambda value: _is_text(value) and value in words


def _are_counts(value: Any) -> bool:
    """A list of lists of counts, none of them empty."""
    return isinstance(value, list) and all(
        isinstance(row, list) and bool(row) and all(map(_is_count, row)) for row in value
    )


def _are_counts_by_side(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == set(SIDES)
        and all(map(_are_counts, value.values()))
    )


def _are_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(file, dict) and _is_size(file.get("nbytes")) and _is_text(file.get("sha256"))
        for file in value.values()
    )


def _are_tables(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_table, value.values()))


_FORM: Form = {
    "model": ("a name", _is_text),
    "fingerprint": ("a table", _is_table),
    "geometry": ("a table", _is_table),
    "positions_mode": (f"one of {', '.join(POSITIONS_MODES)}", _one_of(POSITIONS_MODES)),
    "complete": ("true or false", _is_flag),
    "n_seen": ("a count", _is_count),
    "token_ids_sha256": ("a digest", _is_text),
    "offsets": ("lists of counts", _are_counts),
    "scorer": ("a digest", _is_text),
    "chunk_tokens": ("a count", _is_count),
    "eviction": ("a table", _is_table),
    "n_coded": ("counts of quantised entries", _are_counts_by_side),
    "quantisation": ("a table", _is_table),
    "files": ("sizes and digests", _are_files),
    "tensors": ("a table of tables", _are_tables),
    "extra": ("a table", _is_table),
}
_QUANTISATION: Form = {
    "k_bits": (f"one of {', '.join(map(str, BITS))}", _is_bits),
    "v_bits": (f"one of {', '.join(map(str, BITS))}", _is_bits),
    "recent_tokens": ("a count", _is_count),
    "dtype": (f"one of {', '.join(FLOATS)}", _one_of(FLOATS)),
}
