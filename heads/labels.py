"""What a cache entry is worth: measured by probes that a reader might send.

A probe is some text appended to the document (a request to repeat it, or a question and its
answer). Its queries look at the entries; from what they see comes, per layer, KV head and entry,

    cis         max over p, g of  q . k / sqrt(head_dim)   (Locret, 2410.01805)
    kvzip       max over p, g of  log a                           (KVzip, 2505.23416)
    kvzip_plus  max over p, g of  log (a |W_o v| / |h|)           (KVzip+, 2601.07891)
    expected    log mean over p, max over g of  a |W_o v| / |h|   the mean in place of the maximum

p runs over the probe's tokens, g over the query group; a is the softmax over sinks, the labelled
entries and the probe itself, so that values compare at any length of document; h is the attention's
input at the probe's token, W_o the output projection's slice of the query head.
All are fp32, higher = keep. Nothing of size n x n is ever held: a probe's queries are taken some
rows at a time, and a document is labelled piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

import kernels
from engine.attention import decoder_of
from engine.batch import SideBySide
from engine.cache import DocCache
from engine.read_layer import attend_within, pack, rotate_group
from engine.refit import References
from engine.trunk import hidden_after

if TYPE_CHECKING:
    from engine.loader import LoadedModel

Kind = Literal["cis", "kvzip", "kvzip_plus", "expected"]
KINDS: tuple[Kind, ...] = ("cis", "kvzip", "kvzip_plus", "expected")
_ROWS = 512  # probe tokens whose logits are held at once


def output_grams(model: LoadedModel) -> list[Tensor]:
    """Per layer [n_q_heads, head_dim, head_dim]: W_o^T W_o of each head's slice.

    v G v is then |W_o v|^2. The projection is asked for its product with the identity, so that
    quantised weights need no special path.
    """
    geometry = model.geometry
    grams = []
    for block in decoder_of(model.model).layers:
        project = block.self_attn.o_proj
        width = geometry.n_q_heads * geometry.head_dim
        eye = torch.eye(width, dtype=model.compute_dtype, device=model.device)
        columns = project(eye).float()
        if getattr(project, "bias", None) is not None:
            columns = columns - project.bias.float()
        w = columns.reshape(geometry.n_q_heads, geometry.head_dim, -1)
        grams.append(w @ w.transpose(1, 2))
    return grams


class Labels:
    """Labels of one stretch of a document, grown by one probe after the other.

    values[kind]  [n_layers, n_kv_heads, n] fp32; `expected` holds log sums until `finished`
    """

    def __init__(self, kinds: Iterable[Kind], n_layers: int, n_kv_heads: int, n: int) -> None:
        self.n_rows, self.n = 0, n
        self.values = {kind: torch.full((n_layers, n_kv_heads, n), -torch.inf) for kind in kinds}

    def add(self, kind: Kind, layer: int, head: int, places: Tensor, found: Tensor) -> None:
        """Take in what one probe found for some entries of a head: both [n_places]."""
        row = self.values[kind][layer, head]
        join = torch.logaddexp if kind == "expected" else torch.maximum
        row[places] = join(row[places], found)

    def finished(self) -> dict[Kind, Tensor]:
        """The labels, with sums turned into means over all probe tokens."""
        done = dict(self.values)
        if "expected" in done:
            done["expected"] = done["expected"] - torch.tensor(float(max(self.n_rows, 1))).log()
        return done


class MeasuringView:
    """A `Store`: a fresh view on a cache that measures what its queries need of some entries.

    cache       its entries at positions first to first + n are labelled, in each head those it has
    n_sinks     entries of the first positions that share the softmax without being labelled
    answer_row  where the probe's answer begins; `cis` counts its queries alone
    noted_rows  [m] int64, the probe's tokens that are noted as references for a refit; the probe
                itself is what was near (engine.refit)
    norms       log |W_o v| of the labelled entries, which several probes share: filled as needed
    """

    wants_hidden = True

    def __init__(
        self,
        cache: DocCache,
        grams: Sequence[Tensor],
        labels: Labels,
        first: int,
        n_sinks: int,
        answer_row: int = 0,
        noted_rows: Tensor | None = None,
        norms: dict[tuple[int, int], Tensor] | None = None,
    ) -> None:
        self.noted_rows, self.noted = noted_rows, list[References]()
        self._norms = {} if norms is None else norms
        self.cache, self.view = cache, cache.view()
        self.grams, self.labels, self.answer_row = grams, labels, answer_row
        self.first, self.n, self.n_sinks = first, labels.n, min(n_sinks, first)
        self._log_norm = torch.empty(0)

    def see_hidden(self, layer: int, hidden: Tensor) -> None:
        """Store protocol: |h| of the probe's tokens."""
        self._log_norm = hidden.float().norm(dim=-1).clamp(min=1e-6).log()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Store protocol: as the view answers, measured on the side. One forward only."""
        out = self.view.attend(layer, q, k, v, scale)
        self._measure(layer, q, k, v, out, scale)
        return out

    def _measure(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float
    ) -> None:
        geometry, rotary = self.cache.geometry, self.cache.rotary
        entries = self.view.entries(layer)
        turned_to = entries.start + torch.arange(k.shape[1], device=k.device)
        q_rot = rotate_group(rotary, q, turned_to)
        k_rot = rotary.rotate(k, turned_to)
        out_self, lse_self = attend_within(q_rot, k_rot, v, scale, geometry.n_kv_heads)
        packed = pack(q_rot, geometry.n_kv_heads)
        if self.noted_rows is not None:
            answers = pack(out, geometry.n_kv_heads)
            self._note(packed * scale, answers, out_self, lse_self, k.shape[1])
        if layer == 0:
            self.labels.n_rows += len(self._log_norm)
        heads = zip(entries.heads(), entries.value_heads(), strict=True)
        for head, (keys, values) in enumerate(heads):
            n_sinks, rows, places = self._rows_of(layer, head)
            if not len(places):
                continue
            near_k = torch.cat([keys[:, :n_sinks], keys[:, rows]], dim=1)
            near_v = torch.cat([values[:, :n_sinks], values[:, rows]], dim=1)
            one = slice(head, head + 1)
            _, lse = kernels.attend(packed[one], near_k, near_v, scale)
            lse = torch.logaddexp(lse, lse_self[one])[0]
            entries_of = (keys[0, rows].float(), values[0, rows].float())
            self._label(layer, head, places, packed[head] * scale, lse, *entries_of)

    def _note(
        self, queries: Tensor, answers: Tensor, near: Tensor, near_lse: Tensor, n: int
    ) -> None:
        """Keep the noted rows of what is packed [n_kv_heads, group * n, ...]."""
        assert self.noted_rows is not None
        rows = self.noted_rows.to(queries.device)
        group = queries.shape[1] // n
        index = (torch.arange(group, device=rows.device)[:, None] * n + rows).flatten()
        parts = [x[:, index].float() for x in (queries, answers, near, near_lse)]
        self.noted.append(References(len(rows), rows.repeat(group), *parts))

    def _rows_of(self, layer: int, head: int) -> tuple[int, slice, Tensor]:
        """A head's sinks, its rows inside the stretch, and which of the stretch's n those are."""
        cached = self.cache.layers[layer]
        positions = cached.positions[cached.rows(head)]
        edges = positions.new_tensor([self.n_sinks, self.first, self.first + self.n])
        n_sinks, start, end = torch.searchsorted(positions, edges).tolist()
        return n_sinks, slice(start, end), positions[start:end].long().cpu() - self.first

    def _label(
        self,
        layer: int,
        head: int,
        places: Tensor,
        q: Tensor,
        lse: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> None:
        """q [group * n_probe, head_dim] scaled, lse to match; keys, values [n_places, head_dim]."""
        group = self.cache.geometry.n_q_heads // self.cache.geometry.n_kv_heads
        n_probe = len(self._log_norm)
        expected: Tensor | None = None
        for g in range(group):
            rows = slice(g * n_probe, (g + 1) * n_probe)
            log_value = self._log_value(layer, head * group + g, values)
            q_g, lse_g = q[rows].float(), lse[rows]
            for kind in self.labels.values:
                if kind == "cis":
                    answer = q_g[self.answer_row :]
                    found = _max_over_probe(answer, keys, lse_g.new_zeros(len(answer)))
                elif kind == "kvzip":
                    found = _max_over_probe(q_g, keys, lse_g)
                elif kind == "kvzip_plus":
                    found = _max_over_probe(q_g, keys, lse_g + self._log_norm) + log_value
                else:
                    found = _sum_over_probe(q_g, keys, lse_g + self._log_norm) + log_value
                    expected = found if expected is None else torch.maximum(expected, found)
                    continue
                self.labels.add(kind, layer, head, places, found.cpu())
        if expected is not None:
            self.labels.add("expected", layer, head, places, expected.cpu())

    def _log_value(self, layer: int, q_head: int, values: Tensor) -> Tensor:
        """log |W_o v| of a query head's labelled values."""
        found = self._norms.get((layer, q_head))
        if found is None:
            found = _log_norms(values, self.grams[layer][q_head].to(values.device))
            self._norms[layer, q_head] = found
        return found


def _log_norms(values: Tensor, gram: Tensor) -> Tensor:
    """log |W_o v| of each value [n, head_dim]."""
    return ((values @ gram) * values).sum(-1).clamp(min=1e-12).log() / 2


def _max_over_probe(q: Tensor, keys: Tensor, shift: Tensor) -> Tensor:
    """max over p of q_p . k_i - shift_p: [n]."""
    best = torch.full((len(keys),), -torch.inf, device=keys.device)
    for rows in torch.arange(len(q), device=q.device).split(_ROWS):
        logits = torch.addmm(-shift[rows, None], q[rows], keys.T)
        best = torch.maximum(best, logits.amax(dim=0))
    return best


def _sum_over_probe(q: Tensor, keys: Tensor, shift: Tensor) -> Tensor:
    """log of the sum over p of exp(q_p . k_i - shift_p): [n]."""
    total = torch.full((len(keys),), -torch.inf, device=keys.device)
    for rows in torch.arange(len(q), device=q.device).split(_ROWS):
        logits = torch.addmm(-shift[rows, None], q[rows], keys.T)
        total = torch.logaddexp(total, logits.logsumexp(dim=0))
    return total


class _Probes(SideBySide):
    """Several probes in one forward; each learns the norms of its own tokens."""

    wants_hidden = True

    def __init__(self, views: Sequence[MeasuringView], lengths: Sequence[int]) -> None:
        super().__init__(views, lengths)
        self._measuring = views

    def see_hidden(self, layer: int, hidden: Tensor) -> None:
        for view, rows in zip(self._measuring, hidden.split(self.lengths), strict=True):
            view.see_hidden(layer, rows)


@dataclass(frozen=True)
class Probe:
    """What is appended to the document.

    answer_row  from there on it is the answer, for `cis`
    noted_rows  see MeasuringView
    """

    token_ids: Sequence[int]
    answer_row: int = 0
    noted_rows: Tensor | None = None


@torch.inference_mode()
def measure(
    model: LoadedModel,
    cache: DocCache,
    grams: Sequence[Tensor],
    probes: Sequence[Probe],
    labels: Labels,
    *,
    first: int,
    n_sinks: int,
    max_batch_tokens: int = 1024,
) -> list[list[References]]:
    """Send probes on fresh views of a frozen cache, a few together, and grow the labels.

    labels   of the entries at positions first to first + n; -inf stays where a head has none
    Returns  per probe and layer what was noted of it; nothing of probes without `noted_rows`
    """
    noted = []
    norms: dict[tuple[int, int], Tensor] = {}
    shared = (cache, grams, labels, first, n_sinks)
    for batch in _batches(probes, max_batch_tokens):
        views = [
            MeasuringView(*shared, probe.answer_row, probe.noted_rows, norms) for probe in batch
        ]
        store = _Probes(views, [len(probe.token_ids) for probe in batch])
        ids = [token for probe in batch for token in probe.token_ids]
        hidden_after(model, torch.as_tensor(ids, dtype=torch.int64), store)
        noted += [view.noted for view in views]
    return noted


def _batches(probes: Sequence[Probe], max_tokens: int) -> Iterator[list[Probe]]:
    batch: list[Probe] = []
    for probe in probes:
        if batch and sum(len(p.token_ids) for p in (*batch, probe)) > max_tokens:
            yield batch
            batch = []
        batch.append(probe)
    if batch:
        yield batch
