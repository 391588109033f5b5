"""A token as one launch: the lean decoder's step, recorded once and played again (CUDA graphs).

On a card a token of a small model is a great many short kernels, and launching them can take longer
than they do. A CUDA graph launches all of them at once, but repeats exactly what was recorded: the
same kernels on the same addresses. So the step here reads the token and its place from the device,
writes keys and values into buffers of fixed size, and looks at as many of them as the place says.

A recording belongs to one document's cache and serves all views of it. The first token on a cache
is computed as ever, and the recording must say the same of it before it is used.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import kernels
from engine.cache import DocCache
from engine.errors import CaptureFailed
from engine.read_layer import merged, pack, turned_together
from engine.rotary import Rotary
from engine.rows import Rows
from engine.view import CacheView

if TYPE_CHECKING:
    from engine.lean import LeanDecoder
    from engine.loader import LoadedModel

Run = Callable[[], Tensor]
Recorder = Callable[[Run], tuple[Callable[[], None], Tensor]]

ROOM_TOKENS = 512  # for an answer, in a recording's buffers
BLOCK_TOKENS = 256
TOLERANCE = 0.02  # of the logits' range: the same sums in 16 bits, in another order
_WARM_UP_RUNS = 2  # kernels are compiled and libraries set up before anything is recorded
_TRIAL_ENTRIES = 40


def cuda_graph(run: Run) -> tuple[Callable[[], None], Tensor]:
    """Record what `run` launches; returns what plays it again, and the tensor it writes to.

    Raises what a run or the recording raises; the stream is the one before, whatever happens.
    """
    home, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(home)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_RUNS):
                run()
        home.wait_stream(side)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = run()
    except RuntimeError as error:
        # A spoilt recording leaves its stream in place, and hides what spoilt it.
        torch.cuda.set_stream(home)
        home.wait_stream(side)
        if isinstance(error.__context__, RuntimeError):
            raise error.__context__ from None
        raise
    return graph.replay, out


class CapturedDecoder:
    """A LeanDecoder that plays single tokens from a recording; everything else it computes as ever.

    record  `cuda_graph`, or what stands for it
    """

    def __init__(self, lean: LeanDecoder, record: Recorder = cuda_graph) -> None:
        self.lean = lean
        self._record = record
        self._step: _Step | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held in addition to the model's own, buffers excepted."""
        return self.lean.nbytes

    def forward_all(self, store: CacheView, token_ids: Sequence[int]) -> Tensor:
        """See engine.generate.Decoder."""
        return self.lean.forward_all(store, token_ids)

    @torch.inference_mode()
    def forward(self, store: CacheView, token_ids: Sequence[int]) -> Tensor:
        """See engine.generate.Decoder.

        Raises CaptureFailed if a step cannot be recorded, or the recording says something else.
        """
        if len(token_ids) != 1:
            return self.lean.forward(store, token_ids)
        if self._step is not None and self._step.serves(store):
            return self._step.run(store, int(token_ids[0]))
        expected = self.lean.forward(store, token_ids)
        self._step = None  # its buffers make room for the next one's
        try:
            step = _Step(self.lean, store, int(token_ids[0]), self._record)
        except RuntimeError as error:
            raise CaptureFailed(_why(error)) from error
        _check(step.logits, expected)
        self._step = step
        return expected


def try_captured(model: LoadedModel, lean: LeanDecoder) -> CapturedDecoder:
    """A decoder that has played two tokens on a small cache made up for it.

    Raises CaptureFailed, with the reason, if nothing can be recorded here.
    """
    cache = made_up_cache(model)
    computed, played = cache.view(), cache.view()
    tokens = range(1, 4)
    expected = [lean.forward(computed, [token]) for token in tokens]
    decoder = CapturedDecoder(lean, cuda_graph)
    try:
        for token, logits in zip(tokens, expected, strict=True):
            _check(decoder.forward(played, [token]), logits)
    except RuntimeError as error:
        raise CaptureFailed(_why(error)) from error
    return CapturedDecoder(lean)


def made_up_cache(model: LoadedModel) -> DocCache:
    """A frozen cache of random entries, as many in every head."""
    geometry, device = model.geometry, torch.device(model.device)
    cache = DocCache.empty(
        geometry,
        model.rotary,
        "original",
        compute_dtype=model.compute_dtype,
        kv_dtype=model.compute_dtype,
        device=device,
    )
    generator = torch.Generator().manual_seed(0)
    n_rows = geometry.n_kv_heads * _TRIAL_ENTRIES
    offsets = list(range(0, n_rows + 1, _TRIAL_ENTRIES))
    places = torch.arange(_TRIAL_ENTRIES, dtype=torch.int32, device=device)
    for layer in cache.layers:
        drawn = torch.randn(2, n_rows, geometry.head_dim, generator=generator)
        keys, values = drawn.to(device, model.compute_dtype)
        layer.keys, layer.values = (Rows.of_floats(side, offsets) for side in (keys, values))
        layer.positions = places.repeat(geometry.n_kv_heads)
        layer.scores = torch.zeros(n_rows, device=device)
    cache.token_ids = torch.zeros(_TRIAL_ENTRIES, dtype=torch.int64)
    return cache.freeze()


class _Step:
    """One recorded token on one cache.

    token, place  [1] int64: what is read, and how many tokens a view's tail has before it
    logits        [vocab] fp32, written anew by every run
    Buffers hold the tail of one view at a time; another view's tail moves out when it comes in.
    """

    def __init__(self, lean: LeanDecoder, view: CacheView, token: int, record: Recorder) -> None:
        """view: where `token` is the last of the tail already; the recording repeats it."""
        geometry, cache = view.cache.geometry, view.cache
        device = cache.layers[0].positions.device
        room = -(-(view.n_tail + ROOM_TOKENS) // BLOCK_TOKENS) * BLOCK_TOKENS
        shape = (2, geometry.n_layers, geometry.n_kv_heads, room, geometry.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=cache.compute_dtype, device=device)
        self.token = torch.full((1,), token, dtype=torch.int64, device=device)
        self.place = torch.full((1,), view.n_tail - 1, dtype=torch.int64, device=device)
        self._cache = weakref.ref(cache)  # a closed session's memory is not held here
        self._view: Callable[[], CacheView | None] = lambda: None
        self._take(view)
        store = _StepStore(view, self.keys, self.values, self.place)
        # What a recording reads must live as long as it does.
        self._kept = (lean, store.starts, store.rotary)
        self._replay, self.logits = record(lambda: lean.forward(store, self.token))
        self._replay()

    def serves(self, view: CacheView) -> bool:
        """Whether the recording is of this view's cache and has room for another token."""
        return self._cache() is view.cache and view.n_tail < self.keys.shape[2]

    def run(self, view: CacheView, token: int) -> Tensor:
        """Append a token to a view; the logits after it, [vocab] fp32."""
        n_tail = view.n_tail
        if self._view() is not view or not view.tail_is_in(self.keys, self.values):
            self._take(view)
        self.token.fill_(token)
        self.place.fill_(n_tail)
        self._replay()
        view.lay_tail(self.keys, self.values, n_tail + 1)
        return self.logits.clone()

    def _take(self, view: CacheView) -> None:
        """Let a view's tail lie in the buffers."""
        before = self._view()
        moved = before is None or before is view or not before.tail_is_in(self.keys, self.values)
        if before is not None and not moved:
            before.lay_tail(self.keys.clone(), self.values.clone(), before.n_tail)
        n_tail = view.n_tail
        for number, (k, v) in enumerate(view.tails()):
            if k is not None and v is not None:
                self.keys[number, :, :n_tail] = k
                self.values[number, :, :n_tail] = v
        view.lay_tail(self.keys, self.values, n_tail)
        self._view = weakref.ref(view)


class _StepStore:
    """What the recorded step attends through: a view's entries, and a tail in buffers (a Store).

    keys, values  [n_layers, n_kv_heads, room, head_dim]
    place         [1] int64, where the token's keys and values go
    """

    wants_hidden = False

    def __init__(self, view: CacheView, keys: Tensor, values: Tensor, place: Tensor) -> None:
        self._entries = [view.entries(layer) for layer in range(len(keys))]
        self._keys, self._values, self._place = keys, values, place
        self.starts = torch.stack([entries.start for entries in self._entries])
        rotary = view.cache.rotary
        self.rotary = Rotary(rotary.inv_freq.to(keys.device), rotary.scaling)
        self._turns: tuple[Tensor, Tensor] | None = None

    def see_hidden(self, layer: int, hidden: Tensor) -> None:
        """Store protocol; a step has no use for it."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Store protocol, for one token; nothing is asked of the device."""
        if layer == 0:
            positions = self.starts + self._place
            self._turns = self.rotary.turns(positions[:, :, None])
        assert self._turns is not None
        cos, sin = self._turns
        keys, values = self._keys[layer], self._values[layer]
        given = q.dtype
        q, k = turned_together(self.rotary, q, k, cos[layer], sin[layer], keys.dtype)
        keys.index_copy_(1, self._place, k)
        values.index_copy_(1, self._place, v.to(values.dtype))
        packed = pack(q, len(keys))
        own = kernels.attend_up_to(packed, keys, values, self._place, scale)
        out = merged([self._entries[layer].attend(packed, scale), own])
        return out.reshape(q.shape).to(given)


def _why(error: RuntimeError) -> str:
    said = str(error).strip().splitlines() or [type(error).__name__]
    return f"a step cannot be recorded on this card ({said[0]})."


def _check(found: Tensor, expected: Tensor) -> None:
    span = float(expected.max() - expected.min())
    apart = float((found - expected).abs().max())
    if not apart <= TOLERANCE * span:
        raise CaptureFailed(
            f"a recorded step differs from a computed one by {apart / max(span, 1e-9):.2g} of the "
            f"logits' range, {TOLERANCE} is allowed."
        )
