"""What heads are trained on: a document's hidden states and labels, kept on disk.

A document is read once in chunks. After each chunk, while it is still whole, the model is asked to
repeat it (labels `kvzip`, `kvzip_plus`); after the last, with nothing evicted, questions about the
document are sent with their answers (labels `questions`, and `cis` for Locret). When told, the
model asks itself about a document that comes without questions or is cut short (heads.self_asked).
Forward passes only. A second round is read on-policy: with eviction by trained heads, the budget
shared out as suits their kind and nothing but sinks held, so that the hidden states are much like
those that heads will see at work; labels then come from the first round.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.cache import DocCache
from engine.errors import ScorerUnavailable
from engine.eviction import Allocation, EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.scorers.recency import RecencyScorer
from engine.scoring import LayerStep, Scorer
from heads.labels import Kind, Labels, Probe, measure
from heads.layout import Layout, plain_ids
from heads.question_set import QuestionedDocument
from heads.replay import replay_ids
from heads.retaining import HeadScorer, head_digest
from heads.self_asked import self_asked
from heads.tensor_file import write_tensors

if TYPE_CHECKING:
    from engine.loader import LoadedModel


@dataclass(frozen=True)
class Recording:
    """One document's training material.

    hidden  [n_layers, n, hidden_size] fp16, the input of each layer's attention
    labels  per name [n_layers, n_kv_heads, n] fp16, higher = keep
    n_header tokens of the layout in front of the document, n_tokens everything read
    seconds  that reading and measuring took
    """

    hidden: Tensor
    labels: dict[str, Tensor]
    n_header: int
    seconds: float = 0.0

    @property
    def n_tokens(self) -> int:
        return self.hidden.shape[1]


class Recorder(Scorer):
    """Keeps the hidden states of a reading; scores as another scorer does."""

    wants_hidden = True

    def __init__(self, inner: Scorer) -> None:
        self.inner, self.name = inner, inner.name
        self.wants_mass, self.wants_logits = inner.wants_mass, inner.wants_logits
        self._hidden: dict[int, list[Tensor]] = {}

    def reset(self) -> None:
        self.inner.reset()
        self._hidden = {}

    def score(self, step: LayerStep) -> Tensor:
        assert step.hidden is not None
        self._hidden.setdefault(step.layer, []).append(step.hidden.half().cpu())
        return self.inner.score(step)

    def rescore(self, step: LayerStep, kept: list[Tensor]) -> list[Tensor]:
        return self.inner.rescore(step, kept)

    def see_logits(self, logits: Tensor, token_ids: Tensor) -> Tensor | None:
        return self.inner.see_logits(logits, token_ids)

    def hidden(self) -> Tensor:
        """[n_layers, n, hidden_size] fp16 of everything read."""
        return torch.stack([torch.cat(self._hidden[i]) for i in sorted(self._hidden)])


@dataclass(frozen=True)
class RecordSettings:
    """How a document is read for training.

    max_tokens    longer documents are cut there, and their questions left out
    chunk_tokens  tokens a forward pass and a replayed piece
    kept          None reads with the full cache; else the on-policy budget as a fraction
    replay        whether to measure the replay labels
    kinds         which of them; `cis` is measured on the questions
    max_questions sent for each document, evenly chosen
    ask_itself    the model asks itself about documents without questions, or cut short
    """

    max_tokens: int = 4096
    chunk_tokens: int = 1024
    kept: float | None = None
    replay: bool = True
    kinds: tuple[Kind, ...] = ("kvzip_plus",)
    max_questions: int = 16
    ask_itself: bool = False


def kinds_for(label: str) -> tuple[Kind, ...]:
    """What has to be measured for a label that heads are fitted to (heads.train.target)."""
    known: dict[str, tuple[Kind, ...]] = {"questions": (), "kvzip": ("kvzip",), "cis": ("cis",)}
    return known.get(label, ("kvzip_plus",))


def record(
    model: LoadedModel,
    layout: Layout,
    document: QuestionedDocument,
    settings: RecordSettings,
    grams: Sequence[Tensor],
    scorer: Scorer | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Recording:
    """Read one document and measure its labels.

    scorer  needed with `settings.kept`: who evicts
    """
    began = time.perf_counter()
    prefix = layout.prefix(document.text)
    n_whole = prefix.n_header + prefix.n_document
    ids = prefix.token_ids[: min(n_whole, settings.max_tokens)]
    closing = prefix.token_ids[n_whole:]
    recorder = Recorder(scorer or RecencyScorer())
    replays: list[dict[Kind, Tensor]] = []
    kinds = [kind for kind in settings.kinds if kind != "cis"]

    def replay(cache: DocCache) -> None:
        first = sum(r[kinds[0]].shape[-1] for r in replays)
        probe = Probe(replay_ids(layout, ids, prefix.n_header, first, cache.n_seen, closing))
        replays.append(_measured(model, cache, grams, [probe], first, prefix.n_header, kinds))

    eviction = _eviction(settings, len(ids), recorder.inner.allocation)
    config = PrefillConfig(settings.chunk_tokens, eviction)
    cache = prefill(
        model,
        ids,
        config,
        recorder,
        see_whole=replay if settings.replay and kinds else None,
        on_progress=on_progress,
    )
    labels: dict[str, Tensor] = {
        kind: torch.cat([r[kind] for r in replays], dim=-1) for kind in kinds if replays
    }
    if settings.kept is None:
        # Questions about a whole document may be about what was cut off.
        questions = document.questions if len(ids) == n_whole else ()
        asked = [(q.text, q.answers[0]) for q in questions]
        if settings.ask_itself and not asked:
            asked = self_asked(model, layout, cache, closing)
        asked = [pair for pair in asked if pair[1].strip()]
        asked = _spread(asked, settings.max_questions)
        if asked:
            with_cis = "cis" in settings.kinds
            labels |= _question_labels(model, layout, asked, cache, grams, closing, with_cis)
    halves = {name: label.half() for name, label in labels.items()}
    seconds = time.perf_counter() - began
    return Recording(recorder.hidden(), halves, prefix.n_header, seconds)


def _eviction(settings: RecordSettings, n_tokens: int, allocation: Allocation) -> EvictionConfig:
    if settings.kept is None:
        return EvictionConfig(budget_tokens=None, positions="original")
    budget = max(round(settings.kept * n_tokens), 64)
    return EvictionConfig(
        budget, allocation, sink_tokens=4, stabilizer_tokens=0, local_tokens=0, positions="original"
    )


def _measured(
    model: LoadedModel,
    cache: DocCache,
    grams: Sequence[Tensor],
    probes: Sequence[Probe],
    first: int,
    n_sinks: int,
    kinds: Sequence[Kind],
) -> dict[Kind, Tensor]:
    g = model.geometry
    labels = Labels(kinds, g.n_layers, g.n_kv_heads, cache.n_seen - first)
    measure(model, cache, grams, probes, labels, first=first, n_sinks=n_sinks)
    return labels.finished()


def _question_labels(
    model: LoadedModel,
    layout: Layout,
    asked: Sequence[tuple[str, str]],
    cache: DocCache,
    grams: Sequence[Tensor],
    closing: list[int],
    with_cis: bool,
) -> dict[str, Tensor]:
    """Labels of all entries from (question, answer) pairs."""
    probes = []
    for question, answer in asked:
        before = [*closing, *layout.tail(question)]
        answer_ids = plain_ids(layout.tokenizer, answer)
        probes.append(Probe([*before, *answer_ids], answer_row=len(before)))
    kinds: tuple[Kind, ...] = ("kvzip_plus", "cis") if with_cis else ("kvzip_plus",)
    found = _measured(model, cache, grams, probes, 0, 0, kinds)
    return {("cis" if kind == "cis" else "questions"): label for kind, label in found.items()}


def _spread(items: Sequence[Any], n: int) -> list[Any]:
    """At most n of the items, evenly spaced."""
    if len(items) <= n:
        return list(items)
    return [items[i * len(items) // n] for i in range(n)]


def evictor_of(scorer: HeadScorer) -> str:
    """Who evicts and how, as recording_path has it.

    One budget over all heads goes unnamed: recordings of before there was another rule stay valid.
    """
    who = head_digest(scorer.head)
    return who if scorer.allocation == "global" else f"{who}:{scorer.allocation}"


def recording_path(
    folder: Path,
    model: LoadedModel,
    layout: Layout,
    document: QuestionedDocument,
    settings: RecordSettings,
    who: str,
) -> Path:
    """Where a recording of exactly this model, layout, document, settings and evictor lies."""
    prefix = layout.prefix(document.text)
    what = [prefix.token_ids, prefix.n_header, [asdict(q) for q in document.questions]]
    key = json.dumps(
        [sorted(model.fingerprint.items()), what, asdict(settings), who], sort_keys=True
    )
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def save_recording(path: Path, recording: Recording) -> None:
    """Write a recording atomically. Raises NotEnoughDisk if the disk is full."""
    tensors = {"hidden": recording.hidden.contiguous()}
    tensors |= {f"label.{k}": v.contiguous() for k, v in recording.labels.items()}
    facts = {"n_header": str(recording.n_header), "seconds": f"{recording.seconds:.3f}"}
    write_tensors(path, tensors, "What a training reads", facts)


def load_recording(path: Path, *, hidden: bool = True) -> Recording:
    """Read back what `save_recording` wrote; without `hidden` its states stay on disk (empty).

    Raises ScorerUnavailable if the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            labels = {n[6:]: file.get_tensor(n) for n in file.keys() if n.startswith("label.")}  # noqa: SIM118
            states = file.get_tensor("hidden") if hidden else torch.empty(0, 0, 0)
            facts = file.metadata()
            return Recording(states, labels, int(facts["n_header"]), float(facts["seconds"]))
    except (SafetensorError, OSError) as error:
        raise ScorerUnavailable(
            f"The recording {path.name} of a training cannot be read: {error}.",
            f"Delete {path}; the same command reads its document again.",
        ) from error
