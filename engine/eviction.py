"""Which entries stay: budgets, allocation and selection over ragged heads.

Budget and what it includes: `budget_tokens` is the mean number of entries per layer and KV head,
sinks, stabilizers and locals included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor

import kernels
from engine.errors import InvalidSetting
from kernels.selection import kept_indices, offsets_after

Allocation = Literal["uniform", "per_layer", "global", "profile"]
ALLOCATIONS: tuple[str, ...] = ("uniform", "per_layer", "global", "profile")
PositionsMode = Literal["original", "compact", "shared"]
Positions = Literal["auto", "original", "compact", "shared"]
POSITIONS: tuple[str, ...] = ("auto", "original", "compact", "shared")
RESERVE_TOKENS = 2048


def reserve_tokens(window: int) -> int:
    """Kept free inside a trained window for the question and the answer: half of a small one."""
    return min(RESERVE_TOKENS, window // 2)


def compact_ceiling(window: int, chunk_tokens: int) -> int:
    """Most entries a head may hold, so that compact positions stay inside the trained window."""
    return window - max(chunk_tokens, reserve_tokens(window))


Shares = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Profile:
    """Shares per layer and KV head, any positive scale, measured at some kept fractions.

    kept    ascending, each in (0, 1]
    shares  for each of them [n_layers][n_kv_heads]
    """

    kept: tuple[float, ...]
    shares: tuple[Shares, ...]

    def __post_init__(self) -> None:
        if len(self.kept) != len(self.shares) or not self.kept:
            raise InvalidSetting("A profile needs one table of shares for each kept fraction.")
        if list(self.kept) != sorted(set(self.kept)) or not 0 < self.kept[0] <= self.kept[-1] <= 1:
            raise InvalidSetting("A profile's kept fractions must ascend between 0 and 1.")

    def at(self, kept: float) -> Tensor:
        """Shares summing to 1, [n_layers, n_kv_heads] fp64: interpolated in the logarithm of kept.

        Everything kept means equal shares; outside the measured fractions the nearest holds.
        """
        tables = [torch.tensor(t, dtype=torch.float64) for t in self.shares]
        tables = [t / t.sum() for t in tables]
        levels = list(self.kept)
        if levels[-1] < 1:
            levels.append(1.0)
            tables.append(torch.full_like(tables[0], 1 / tables[0].numel()))
        place = min(max(kept, levels[0]), levels[-1])
        upper = next(i for i, level in enumerate(levels) if level >= place)
        if levels[upper] == place:
            return tables[upper]
        low, high = math.log(levels[upper - 1]), math.log(levels[upper])
        weight = (math.log(place) - low) / (high - low)
        return (1 - weight) * tables[upper - 1] + weight * tables[upper]


@dataclass(frozen=True)
class EvictionConfig:
    """How many entries stay, and which may never go.

    budget_tokens       mean entries per layer and KV head; None keeps everything
    allocation          how the total is shared: every head alike, pooled per layer, pooled over
                        all layers, or guided by a `profile`
    head_floor          per_layer and global: share of budget_tokens each head keeps by its own best
    sink_tokens         first tokens of the document, never evicted
    stabilizer_tokens   newest tokens, protected while more text is to come
    local_tokens        last tokens of the document, never evicted
    positions           rotary positions at read (engine.places), or automatic
    profile             how much each layer and KV head keeps, by the kept fraction
    profile_part        profile: the part of the budget that it divides; scores over all layers
                        and heads compete for the rest
    refit               kept values take over what evicted entries gave (engine.refit)
    """

    budget_tokens: int | None = 4096
    allocation: Allocation = "uniform"
    head_floor: float = 0.1
    sink_tokens: int = 4
    stabilizer_tokens: int = 16
    local_tokens: int = 16
    positions: Positions = "auto"
    profile: Profile | None = field(default=None, repr=False)
    profile_part: float = 0.5
    refit: bool = False

    def __post_init__(self) -> None:
        if self.allocation not in ALLOCATIONS:
            raise InvalidSetting(f"allocation '{self.allocation}' is none of {ALLOCATIONS}.")
        if self.positions not in POSITIONS:
            raise InvalidSetting(f"positions '{self.positions}' is none of {POSITIONS}.")
        for name in ("head_floor", "profile_part"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidSetting(f"{name} {getattr(self, name)} is not between 0 and 1.")
        for name in ("sink_tokens", "stabilizer_tokens", "local_tokens"):
            if getattr(self, name) < 0:
                raise InvalidSetting(f"{name} {getattr(self, name)} is negative.")
        if self.budget_tokens is not None and self.budget_tokens <= self.protected_tokens:
            raise InvalidSetting(
                f"A budget of {self.budget_tokens} entries is too small: "
                f"{self.protected_tokens} at a text's beginning and end are always kept.",
                "Choose a larger one.",
            )
        if self.allocation == "profile" and self.profile is None:
            raise InvalidSetting(
                "The scorer has no profile of shares to divide the budget by.",
                "Choose another allocation, as global.",
            )
        if self.allocation != "profile" and self.profile is not None:
            raise AssertionError(f"a profile is given, and allocation '{self.allocation}'")

    @property
    def protected_tokens(self) -> int:
        """Most entries of a head that the rules alone can hold."""
        return self.sink_tokens + max(self.stabilizer_tokens, self.local_tokens)

    def resolve_positions(self, n_tokens: int, window: int) -> PositionsMode:
        """`auto`: document positions while text, question and answer fit the trained window, then
        moved together, a token at one place in all heads.
        """
        if self.positions != "auto":
            return self.positions
        return "original" if n_tokens + reserve_tokens(window) <= window else "shared"


@dataclass(frozen=True)
class HeadEntries:
    """One head's candidates: scores [n] fp32, higher = keep; positions [n] in the document."""

    scores: Tensor
    positions: Tensor


def protected(positions: Tensor, config: EvictionConfig, n_seen: int, *, last: bool) -> Tensor:
    """Mask [n] of what the rules keep: sinks, and the newest (stabilizers, at the end locals)."""
    newest = config.local_tokens if last else config.stabilizer_tokens
    return (positions < config.sink_tokens) | (positions >= n_seen - newest)


def select(
    entries: list[list[HeadEntries]],
    config: EvictionConfig,
    n_seen: int,
    *,
    last: bool,
    ceiling: int | None = None,
) -> list[list[Tensor]]:
    """Choose the entries that stay.

    entries    per layer, per KV head
    n_seen     document tokens read so far
    last       the document ends here: locals replace stabilizers
    ceiling    most entries any head may hold (the trained window, with compact positions)
    Returns    per layer, per KV head: kept indices, ascending, int64

    Ties go to the later position, then to the earlier layer and head, so that two readings of
    one document choose alike.
    """
    if config.budget_tokens is None:
        return [
            [torch.arange(len(e.scores), device=e.scores.device) for e in heads]
            for heads in entries
        ]
    heads = [e for row in entries for e in row]
    layer_ends = [0, *accumulate(len(row) for row in entries)]
    parts = list(pairwise(layer_ends)) if config.allocation == "per_layer" else [(0, len(heads))]
    floors, pool = _floors(entries, config, ceiling, n_seen)
    chosen: list[Tensor] = []
    for first, end in parts:
        budget = pool * (end - first)
        rows = heads[first:end]
        chosen += _stay(rows, floors[first:end], budget, ceiling, config, n_seen, last)
    return [chosen[start:end] for start, end in pairwise(layer_ends)]


def _stay(
    rows: list[HeadEntries],
    floors: list[int],
    budget: int,
    ceiling: int | None,
    config: EvictionConfig,
    n_seen: int,
    last: bool,
) -> list[Tensor]:
    """The kept indices of each row of one pool, ascending; the device is asked once."""
    scores = torch.cat([e.scores for e in rows])
    positions = torch.cat([e.positions for e in rows])
    unsound = torch.isnan(scores).any()
    largest = torch.finfo(torch.float32).max
    starts = [0, *accumulate(len(e.scores) for e in rows)]
    offsets = torch.tensor(starts, dtype=torch.int32, device=scores.device)
    keep = kernels.keep_mask(
        scores.clamp(-largest, largest),
        positions.to(torch.int32),
        offsets,
        protected(positions, config, n_seen, last=last),
        torch.tensor(floors, dtype=torch.int32, device=scores.device),
        budget,
        ceiling,
    )
    *counts, is_unsound = torch.cat([offsets_after(keep, offsets).diff(), unsound[None]]).tolist()
    if is_unsound:
        raise AssertionError("a scorer returned NaN")
    found = kept_indices(keep, sum(counts)).split(counts)
    return [index - start for index, start in zip(found, starts, strict=False)]


def _floors(
    entries: list[list[HeadEntries]],
    config: EvictionConfig,
    ceiling: int | None,
    n_seen: int,
) -> tuple[list[int], int]:
    """What each head keeps by its own best, and the pool's mean entries a head; 0: no pool."""
    assert config.budget_tokens is not None
    lengths = [[_capped(len(e.scores), ceiling) for e in row] for row in entries]
    if config.allocation == "uniform":
        return [_capped(config.budget_tokens, ceiling)] * sum(map(len, lengths)), 0
    if config.allocation == "profile":
        shares = _shares(config, lengths, n_seen)
        return [n for row in shares for n in row], config.budget_tokens
    floor = int(config.head_floor * config.budget_tokens)
    return [min(floor, n) for row in lengths for n in row], config.budget_tokens


def _capped(n: int, ceiling: int | None) -> int:
    return n if ceiling is None else min(n, ceiling)


def _shares(config: EvictionConfig, lengths: list[list[int]], n_seen: int) -> list[list[int]]:
    """Entries that the profile gives each layer and head: its part of the budget, rounded.

    It divides what the rules leave free; what a head is too short to take goes to the others, in
    proportion.
    """
    assert config.budget_tokens is not None and config.profile is not None
    weights = config.profile.at(config.budget_tokens / max(n_seen, 1))
    room = torch.tensor(lengths, dtype=torch.float64)
    if weights.shape != room.shape or bool((weights <= 0).any()):
        n_layers, n_heads = room.shape
        raise InvalidSetting(f"the profile must hold {n_layers} x {n_heads} positive shares.")
    whole = min(config.budget_tokens * room.numel(), int(room.sum()))
    ruled = room.flatten().clamp(max=config.protected_tokens)
    total = int(ruled.sum() + (whole - ruled.sum()).clamp(min=0) * config.profile_part)
    exact = ruled + _filled(weights.flatten(), room.flatten() - ruled, total - float(ruled.sum()))
    shares = exact.floor()
    missing = total - int(shares.sum())
    spare = torch.where(shares < room.flatten(), exact - shares, -1.0)
    shares[torch.sort(spare, descending=True, stable=True).indices[:missing]] += 1
    return [[int(s) for s in row] for row in shares.reshape(room.shape)]


def _filled(weights: Tensor, room: Tensor, total: float) -> Tensor:
    """`total` divided in proportion to weights [n], none above its room [n]."""
    full = torch.zeros_like(room, dtype=torch.bool)
    while True:
        rest = total - float(room[full].sum())
        free = weights.masked_fill(full, 0.0)
        exact = torch.where(full, room, free / free.sum().clamp(min=1e-300) * rest)
        over = (exact > room) & ~full
        if not bool(over.any()):
            return exact
        full |= over
