"""Measures scorers: what answers lose when a cache keeps a share of its entries.

Each document is read once with nothing evicted, which gives the full cache's marks. A scorer's
cache is that one, pruned by what the scorer said during the reading; or, chunked, it is read by
itself with evictions after every chunk, as the application reads.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.batch import generate_together, nll_together
from engine.byte_budget import entry_nbytes, fitting_tokens
from engine.errors import InvalidSetting, NoRoom, ScorerUnavailable
from engine.eviction import Allocation, EvictionConfig, Positions, reserve_tokens
from engine.prefill import PrefillConfig, prefill
from engine.pruning import pruned
from engine.quantisation import RECENT_TOKENS, TAIL_TOKENS, QuantConfig, parse_kv_bits
from engine.refit import REFIT_KEY
from engine.scorers.several import SeveralScorers
from engine.scoring import Scorer
from heads import second_reading
from heads.layout import Layout, plain_ids
from heads.metrics import answer_recall, token_f1
from heads.oracles import ORACLES, Asked, scorer_of_oracle
from heads.question_set import QuestionedDocument
from heads.results import DocumentResult, ResultLog, Row
from heads.second_reading import (
    FIRST_PASS_FACTOR,
    PIECE_TOKENS,
    REPLAY_SHARE,
    first_pass,
    read_again,
)

if TYPE_CHECKING:
    from engine.cache import DocCache
    from engine.loader import LoadedModel

FULL = "full"
AUTO = "auto"
FINE = "16"  # bits of entries that are not quantised
OVERLAP_KEY = "by the oracle's own rules"  # how the set that rows are compared with is found
TWICE = "+twice"  # after a scorer's name: its reading was followed by a second


@dataclass(frozen=True)
class EvalSettings:
    """What to measure.

    scorers         names of the catalogue or of ORACLES, in the order of the report
    kept            shares of a document's tokens to keep, each above 0 and at most 1
    chunked         read anew for every row, with evictions; oracles prune the full cache even so
    chunk_tokens    tokens a forward pass, of full and chunked readings
    allocation      how the budget is shared out; None: as suits each scorer
    positions       where kept entries are read in chunked readings (engine.places)
    sink_tokens     first tokens that always stay; None: as many as the application keeps
    max_new_tokens  longest generated answer
    generate        False leaves out the answers: likelihoods only
    oracle          the oracle that every row's kept entries are compared with
    read_twice      chunked readings are followed by a second one; their rows are named so, and
                    oracles, which have the full cache, are as before
    refit           chunked readings refit the values of what they keep (engine.refit)
    kv_bits         how finely entries are kept, a row each (engine.quantisation); the full cache
                    has 16 bits
    equal_bytes     shares are of the full cache's bytes: fewer bits leave room for more entries
    full            False leaves out the full reading, for documents beyond the trained window
    """

    scorers: tuple[str, ...]
    kept: tuple[float, ...]
    chunked: bool = False
    chunk_tokens: int = 1024
    allocation: Allocation | None = None
    positions: Positions = "auto"
    sink_tokens: int | None = None
    max_new_tokens: int = 32
    generate: bool = True
    oracle: str | None = None
    full: bool = True
    read_twice: bool = False
    refit: bool = False
    kv_bits: tuple[str, ...] = (FINE,)
    equal_bytes: bool = False

    def __post_init__(self) -> None:
        if not (self.scorers and self.kept and self.kv_bits):
            raise InvalidSetting(
                "There is nothing to measure.", "Name a scorer, a share and how many bits."
            )
        for kept in self.kept:
            if not 0 < kept <= 1:
                raise InvalidSetting(f"The share {kept} is not above 0 and at most 1.")
        if self.oracle is not None and self.oracle not in ORACLES:
            known = ", ".join(sorted(ORACLES)) or "none yet"
            raise ScorerUnavailable(f"There is no oracle '{self.oracle}'.", f"Known: {known}.")
        if self.read_twice and not self.chunked:
            raise InvalidSetting(
                "A second reading follows a chunked one; a full cache is pruned without it.",
                "Add --chunked.",
            )
        if self.positions != "auto" and not self.chunked:
            raise InvalidSetting(
                "Places are given as chunks are read; a full cache is pruned where it stands.",
                "Add --chunked.",
            )
        if self.refit and not self.chunked:
            raise InvalidSetting(
                "Values are refitted as chunks are read; a full cache is pruned without it.",
                "Add --chunked.",
            )
        for bits in self.kv_bits:  # a reading refuses what does not go together
            rules = EvictionConfig(None, positions=self.positions, refit=self.refit)
            PrefillConfig(self.chunk_tokens, rules, quant=parse_kv_bits(bits))
        if not self.full and (not self.chunked or self.oracle_names):
            raise InvalidSetting(
                "Pruning and oracles need the full reading.",
                "Measure chunked readings of scorers, or leave the full reading in.",
            )

    @property
    def oracle_names(self) -> list[str]:
        """Every oracle that is needed, each once."""
        return [n for n in dict.fromkeys([*self.scorers, self.oracle or ""]) if n in ORACLES]

    @property
    def least_tokens(self) -> int:
        """Entries a head that always stay: one above what is protected."""
        return EvictionConfig(None, sink_tokens=self._sinks).protected_tokens + 1

    @property
    def _sinks(self) -> int:
        usual = EvictionConfig(None).sink_tokens
        return usual if self.sink_tokens is None else self.sink_tokens

    def eviction(self, n_tokens: int, kept: float, scorer: Scorer | None = None) -> EvictionConfig:
        """The budget for a document of n_tokens: never less than `least_tokens`."""
        scorer = scorer or Scorer()
        allocation = self.allocation or scorer.allocation
        return EvictionConfig(
            budget_tokens=max(round(kept * n_tokens), self.least_tokens),
            allocation=allocation,
            positions=self.positions,
            sink_tokens=self._sinks,
            profile=scorer.profile if allocation == "profile" else None,
            refit=self.refit,
        )


@dataclass(frozen=True)
class Refused:
    """A document that was left out, and why."""

    name: str
    cause: str


def evaluate(
    model: LoadedModel,
    layout: Layout,
    documents: Sequence[QuestionedDocument],
    settings: EvalSettings,
    make_scorer: Callable[[str], Scorer],
    *,
    log: ResultLog | None = None,
    on_document: Callable[[int, DocumentResult | Refused], None] | None = None,
) -> tuple[list[DocumentResult], list[Refused]]:
    """Measure every document; returns the results, and the documents that had no room.

    make_scorer  gives the scorer of a name; asked once per name
    log          documents found there under the same settings are not measured again
    on_document  gets each document's number, from 0, and what came of it
    Raises       what make_scorer raises; InvalidSetting if every document was refused
    """
    scorers = {n: make_scorer(n) for n in settings.scorers if n not in ORACLES}
    # A budget that cannot be shared out so is refused now.
    for name in (*settings.scorers, *settings.oracle_names):
        settings.eviction(1, 1.0, _shares(name, scorers))
    log = log or ResultLog(None)
    results: list[DocumentResult] = []
    refused: list[Refused] = []
    for number, document in enumerate(documents):
        reading = _Reading(model, layout, document, settings, scorers)
        outcome: DocumentResult | Refused
        try:
            outcome = _measured(reading, log)
            results.append(outcome)
        except NoRoom as error:
            outcome = Refused(document.name, error.cause)
            refused.append(outcome)
        if on_document is not None:
            on_document(number, outcome)
    if not results:
        raise InvalidSetting(refused[0].cause if refused else "There are no documents.")
    return results, refused


def _measured(reading: _Reading, log: ResultLog) -> DocumentResult:
    """The result of a document, from the log if it is there. Raises NoRoom."""
    reading.check_room()
    found = log.get(reading.key())
    if found is None:
        found = reading.measure()
        log.add(reading.key(), found)
    return found


def _shares(name: str, scorers: Mapping[str, Scorer]) -> Scorer:
    """Whoever says how the budget of a scorer or oracle is shared out."""
    return scorer_of_oracle(name) if name in ORACLES else scorers[name]


class _Reading:
    """One document under one model and setting."""

    def __init__(
        self,
        model: LoadedModel,
        layout: Layout,
        document: QuestionedDocument,
        settings: EvalSettings,
        scorers: Mapping[str, Scorer],
    ) -> None:
        self.model, self.layout, self.document = model, layout, document
        self.settings, self.scorers = settings, scorers
        self.prefix = layout.prefix(document.text)
        self.asked: list[Asked] = [
            (layout.tail(q.text), plain_ids(layout.tokenizer, q.answers[0]))
            for q in document.questions
        ]
        self._several = SeveralScorers({} if settings.chunked else scorers)

    @property
    def n_tokens(self) -> int:
        return len(self.prefix.token_ids)

    def check_room(self) -> None:
        """Raise NoRoom, before the reading, if the window is too small for what is known to come.

        Whether a question fits beside entries that are moved together shows when it is asked.
        """
        settings, window = self.settings, self.model.geometry.window
        reserve = reserve_tokens(window)
        if settings.full and self.n_tokens + reserve > window:
            raise NoRoom(
                f"{self.document.name} has {self.n_tokens} tokens; the full reading needs them and "
                f"{reserve} more inside the model's window of {window}."
            )
        rules = EvictionConfig(None, positions=settings.positions)
        stays = settings.full or rules.resolve_positions(self.n_tokens, window) == "original"
        if stays and self.n_tokens <= window:  # a reading beyond it refuses by itself
            self._check_questions(window - self.n_tokens)
        if settings.read_twice and self.scorers:
            config = PrefillConfig(settings.chunk_tokens, rules)
            second_reading.check_room(window, self.layout, self.n_tokens, config)

    def _check_questions(self, room: int) -> None:
        """Raise NoRoom for the first question that takes more tokens than `room`."""
        longest = self.settings.max_new_tokens if self.settings.generate else 0
        for number, (tail, answer) in enumerate(self.asked, 1):
            needed = len(tail) + max(longest, len(answer) - 1)
            if needed > room:
                raise NoRoom(
                    f"Question {number} of {self.document.name} needs {needed} tokens with its "
                    f"answer; the model's window has room for {room} after the document."
                )

    def key(self) -> str:
        """What the result depends on; changed code is not noticed."""
        parts = {
            "tokens": self.prefix.token_ids,
            "header": self.prefix.n_header,
            "asked": self.asked,
            "answers": [q.answers for q in self.document.questions],
            "settings": _settings_key(self.settings),
            "allocation": self.settings.allocation or AUTO,
            "scorers": {
                name: [scorer.digest(), scorer.allocation] for name, scorer in self.scorers.items()
            },
            "model": self.model.fingerprint,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def measure(self) -> DocumentResult:
        """Read, prune and ask."""
        settings = self.settings
        full = None
        if settings.full:
            started = time.perf_counter()
            full = self._row(FULL, 1.0, self._full, None, started)
        _ = self._oracle_scores  # now, so that their time is nobody's
        rows = []
        for kept in settings.kept:
            bests: dict[int, DocCache] = {}
            for name, bits in product(settings.scorers, settings.kv_bits):
                quant = parse_kv_bits(bits, self.model.geometry)
                share = self._share_of_entries(kept, quant)
                best = self._best(share, bests)
                started = time.perf_counter()
                cache = self._cache(name, self._rules(name, share), quant)
                rows.append(self._row(self._row_name(name, bits), kept, cache, best, started))
        pairs = product(settings.scorers, settings.kv_bits)
        order = {self._row_name(*pair): n for n, pair in enumerate(pairs)}
        rows.sort(key=lambda row: order[row.scorer])
        return DocumentResult(
            self.document.name, self.n_tokens, len(self.document.questions), full, rows
        )

    def _row_name(self, name: str, bits: str) -> str:
        twice = TWICE if self.settings.read_twice and name not in ORACLES else ""
        return name + twice + ("" if bits == FINE else f"+{bits}")

    @cached_property
    def _full(self) -> DocCache:
        """The cache of everything; reading it, the scorers rate."""
        config = PrefillConfig(self.settings.chunk_tokens, EvictionConfig(budget_tokens=None))
        return prefill(self.model, self.prefix.token_ids, config, self._several)

    @cached_property
    def _oracle_scores(self) -> dict[str, dict[int, Tensor]]:
        return {
            name: ORACLES[name](self.model, self._full, self.layout, self.prefix, self.asked)
            for name in self.settings.oracle_names
        }

    def _best(self, share: float, known: dict[int, DocCache]) -> DocCache | None:
        """What the oracle that rows are compared with keeps of a share of the entries.

        known  such caches by their entries a head; grows
        """
        if self.settings.oracle is None:
            return None
        rules = self._rules(self.settings.oracle, share)
        n_entries = rules.budget_tokens or self.n_tokens
        if n_entries not in known:
            scores = self._oracle_scores[self.settings.oracle]
            known[n_entries] = pruned(self._full, scores, rules)
        return known[n_entries]

    def _share_of_entries(self, kept: float, quant: QuantConfig) -> float:
        """The share of the entries that a share of the bytes holds, at most all of them."""
        if not self.settings.equal_bytes:
            return kept
        geometry = self.model.geometry
        allowed = int(kept * self.n_tokens * entry_nbytes(geometry, QuantConfig()))
        return min(fitting_tokens(allowed, self.n_tokens, geometry, quant) / self.n_tokens, 1.0)

    def _rules(self, name: str, kept: float) -> EvictionConfig:
        return self.settings.eviction(self.n_tokens, kept, _shares(name, self.scorers))

    def _cache(self, name: str, rules: EvictionConfig, quant: QuantConfig) -> DocCache:
        """What is left of the document under a scorer or oracle."""
        if name in ORACLES or not self.settings.chunked:
            oracle = self._oracle_scores.get(name)
            scores = self._several.scores(name) if oracle is None else oracle
            whole = pruned(self._full, scores, rules)
            return whole.quantised(quant) if quant.on else whole
        config = PrefillConfig(self.settings.chunk_tokens, rules, quant=quant)
        if not self.settings.read_twice:
            return prefill(self.model, self.prefix.token_ids, config, self.scorers[name])
        large = prefill(self.model, self.prefix.token_ids, first_pass(config), self.scorers[name])
        return read_again(self.model, large, self.layout, self.prefix.n_header, rules)

    def _row(
        self, name: str, kept: float, cache: DocCache, best: DocCache | None, started: float
    ) -> Row:
        """Ask a cache all questions."""
        tails, answers = [t for t, _ in self.asked], [a for _, a in self.asked]
        f1 = recall = None
        if self.settings.generate:
            texts = self._generated(cache, tails)
            pairs = list(zip(texts, self.document.questions, strict=True))
            f1 = [token_f1(text, q.answers) for text, q in pairs]
            recall = [answer_recall(text, q.answers) for text, q in pairs]
        nll = nll_together(self.model, [cache.view() for _ in tails], tails, answers)
        seconds = time.perf_counter() - started
        overlap = None if best is None else overlap_of(cache, best)
        return Row(name, kept, f1, recall, nll, cache.nbytes, cache.kept_tokens, overlap, seconds)

    def _generated(self, cache: DocCache, tails: list[list[int]]) -> list[str]:
        ids = generate_together(
            self.model, [cache.view() for _ in tails], tails, self.settings.max_new_tokens
        )
        decode = self.layout.tokenizer.decode
        return [decode(answer, skip_special_tokens=True) for answer in ids]


def _settings_key(settings: EvalSettings) -> dict[str, Any]:
    """Settings as the log knows them; no word of what was not chosen, as a refit."""
    values = asdict(settings)
    twice = values.pop("read_twice")
    if twice:
        values["second_reading"] = [FIRST_PASS_FACTOR, PIECE_TOKENS, REPLAY_SHARE]
    if values["kv_bits"] == (FINE,):
        del values["kv_bits"]
    else:
        values["settling"] = [RECENT_TOKENS, TAIL_TOKENS]
    if not values["equal_bytes"]:
        del values["equal_bytes"]
    if values["oracle"] is not None:
        values["overlap"] = OVERLAP_KEY
    if values["positions"] == "auto":
        del values["positions"]
    if values.pop("refit"):
        values["refit"] = second_reading.REFIT_KEY if twice else REFIT_KEY
    return values


def overlap_of(cache: DocCache, other: DocCache) -> float:
    """Share of a cache's (layer, head, position) entries that another cache has too."""
    shared = 0
    for mine, theirs in zip(cache.layers, other.layers, strict=True):
        for head in range(len(mine.lengths)):
            positions = theirs.positions[theirs.rows(head)]
            shared += int(torch.isin(mine.positions[mine.rows(head)], positions).sum())
    return shared / cache.n_entries
