"""The whole training of retaining heads: record, fit, read again on-policy, fit again, save.

Between the last fit and the saving, heads may be fitted through answers (heads.answer_fit).

Everything that takes long is on disk as soon as it is done: a training that was cut off goes on
where it stopped. Documents are divided among processes started by `accelerate launch`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.errors import ScorerUnavailable
from heads.answer_fit import scores_of
from heads.answer_round import taught_by_answers
from heads.labels import output_grams
from heads.layout import Layout
from heads.lessons import is_held_out
from heads.question_set import QuestionedDocument
from heads.recordings import (
    RecordSettings,
    evictor_of,
    load_recording,
    record,
    recording_path,
    save_recording,
)
from heads.retaining import (
    HeadCard,
    HeadScorer,
    LocretHead,
    RetainingHead,
    head_digest,
    load_heads,
    save_heads,
)
from heads.train import FIT_VERSION, FitReport, fit, has_label, profile_of, target
from heads.train_checks import check_training
from heads.train_plan import TrainSettings, first_reading

if TYPE_CHECKING:
    from engine.eviction import Allocation, Profile
    from engine.loader import LoadedModel

_POLL_S = 2.0
_PROFILE_DOCUMENTS = 32  # shares hardly move after so many


def train(
    model: LoadedModel,
    layout: Layout,
    documents: Sequence[QuestionedDocument],
    settings: TrainSettings,
    work: Path,
    out: Path,
    card: HeadCard,
    *,
    start: RetainingHead | LocretHead | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[RetainingHead | LocretHead, list[FitReport]]:
    """Train heads for a model and write them to `out`; returns them and a report per round, and
    one more of the fit through answers if there is one.

    work   folder of the recordings; a second run with the same documents reads none again
    start  heads to go on from: domain adaptation
    """
    check_training(layout, documents, settings, start)
    if start is not None:  # heads that go on keep their width, whatever was asked for
        width = (start.w1 if isinstance(start, RetainingHead) else start.fc1).shape[1]
        settings = replace(settings, fitting=replace(settings.fitting, width=width))
    run = _Run(model, layout, documents, settings, work, say)
    head = start
    for number in range(settings.rounds):
        head = run.round(number, head, card)
    if settings.answers.steps and not run.firsts:  # read, and measured by no label
        run.firsts = run.recorded(first_reading(settings), "", None)
    assert head is not None
    if is_first_process():
        if settings.answers.steps:
            assert isinstance(head, RetainingHead)
            head = run.through_answers(head, card)
        run.save(out, head, card)
    return head, run.reports


class _Run:
    """What a training has read and fitted so far.

    firsts   recordings of the first reading, whose labels all rounds learn
    used     every recording that was made or found
    """

    def __init__(
        self,
        model: LoadedModel,
        layout: Layout,
        documents: Sequence[QuestionedDocument],
        settings: TrainSettings,
        work: Path,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.layout, self.documents = model, layout, documents
        self.settings, self.work, self.say = settings, work, say
        self.firsts: list[Path] = []
        self.used: list[Path] = []
        self.reports: list[FitReport] = []
        self.fit_s = self.answers_s = 0.0

    def round(
        self, number: int, head: RetainingHead | LocretHead | None, card: HeadCard
    ) -> RetainingHead | LocretHead:
        """Read everything, with evictions by the heads of the round before, and fit."""
        how, evictor, scorer, said = first_reading(self.settings), "", None, ""
        if number > 0:
            assert head is not None
            how = replace(how, kept=self.settings.kept, replay=False, kinds=())
            scorer = HeadScorer(head, card, head_digest(head))
            evictor, said = evictor_of(scorer), "on-policy, "
        if is_first_process():
            what = f"reading {said}{len(self.documents)} documents"
            self.say(f"Round {number + 1} of {self.settings.rounds}: {what}.")
        paths = self.recorded(how, evictor, scorer)
        self.firsts = self.firsts or paths
        head, report, seconds = _fitted_once(
            self.model, paths, self.firsts, self.settings, number, self.work, head, self.say
        )
        self.fit_s += seconds
        if report is not None:
            self.reports.append(report)
        return head

    def recorded(self, how: RecordSettings, evictor: str, scorer: HeadScorer | None) -> list[Path]:
        """Recordings of all documents, made now or found."""
        paths = _record_all(
            self.model, self.layout, self.documents, how, self.work, evictor, scorer, self.say
        )
        self.used += paths
        return paths

    def through_answers(self, head: RetainingHead, card: HeadCard) -> RetainingHead:
        """Go on from heads that labels have taught."""
        found = taught_by_answers(
            self.model, self.layout, self.documents, self.firsts, self.settings, self.work, head,
            self.say,
        )  # fmt: skip
        card.held_out = found.held_out
        self.answers_s = found.seconds
        self.reports.append(found.report)
        return found.head

    def save(self, out: Path, head: RetainingHead | LocretHead, card: HeadCard) -> None:
        """Write the heads, with what they cost and how a budget is shared out by them."""
        steps = self.settings.answers.steps
        forward_s = sum(load_recording(p, hidden=False).seconds for p in self.used)
        card.cost = (
            f"{forward_s / 60:.1f} minutes of forward passes of the model, "
            f"{self.fit_s / 60:.1f} of fitting, on {self.model.device}"
        )
        profile: Profile | None
        allocation: Allocation | None = None
        if steps:
            assert isinstance(head, RetainingHead)
            chunk_tokens = self.settings.recording.chunk_tokens
            profile = _profile_of_scores(self.model, head, self.firsts, chunk_tokens)
            allocation = "global"  # one threshold is what they learnt
            card.label += f", then {steps} steps through answers"
            card.cost += f"; {self.answers_s / 60:.1f} minutes through answers, gradients included"
        else:
            profile = _profile(self.firsts, self.settings.fitting.label)
        card.settings = asdict(replace(self.settings, recording=first_reading(self.settings)))
        save_heads(out, head, card, profile, allocation)


def _record_all(
    model: LoadedModel,
    layout: Layout,
    documents: Sequence[QuestionedDocument],
    how: RecordSettings,
    work: Path,
    evictor: str,
    scorer: HeadScorer | None,
    say: Callable[[str], None],
) -> list[Path]:
    """Record this process's share, then wait for the others'; returns all files, in order."""
    paths = [recording_path(work, model, layout, d, how, evictor) for d in documents]
    grams = output_grams(model)
    n_read, seconds = 0, 0.0
    for number in range(_rank(), len(documents), _n_processes()):
        if paths[number].exists():
            continue
        begun = time.perf_counter()
        found = record(model, layout, documents[number], how, grams, scorer)
        save_recording(paths[number], found)
        n_read, seconds = n_read + found.n_tokens, seconds + time.perf_counter() - begun
        say(f"  {number + 1}/{len(documents)}: {n_read} tokens, {n_read / seconds:.0f} a second")
    _wait_for(paths)
    return paths


def _fitted_once(
    model: LoadedModel,
    paths: Sequence[Path],
    firsts: Sequence[Path],
    settings: TrainSettings,
    number: int,
    work: Path,
    start: RetainingHead | LocretHead | None,
    say: Callable[[str], None],
) -> tuple[RetainingHead | LocretHead, FitReport | None, float]:
    """Fit, or take what an earlier run or the first process fitted from the same recordings.

    Returns the heads, the report and the seconds of the fit, whoever made it.
    """
    key = json.dumps([FIT_VERSION, [p.name for p in paths], asdict(settings.fitting), number])
    if start is not None:
        key += head_digest(start)
    path = work / f"heads-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
    told = path.with_suffix(".json")
    if not is_first_process():
        _wait_for([path])
    if path.exists():
        found = _fitted_before(model, path, told, say)
        if found is not None:
            return found
    began = time.perf_counter()
    recordings = [
        replace(load_recording(p), labels=load_recording(f, hidden=False).labels)
        for p, f in zip(paths, firsts, strict=True)
    ]
    held = [r for i, r in enumerate(recordings) if is_held_out(i)]
    trained = [r for i, r in enumerate(recordings) if not is_held_out(i)]
    head, report = fit(
        model,
        trained,
        held,
        settings.fitting,
        start,
        lambda done, total, rank: say(f"  layer {done}/{total}{_held_out_said(rank)}"),
    )
    seconds = time.perf_counter() - began
    report.save(told)
    save_heads(path, head, HeadCard(model.name, settings.fitting.label, cost=f"{seconds:.3f}"))
    return load_heads(path, model).head, report, seconds


def _fitted_before(
    model: LoadedModel, path: Path, told: Path, say: Callable[[str], None]
) -> tuple[RetainingHead | LocretHead, FitReport | None, float] | None:
    """What an earlier run or the first process fitted; None if it was damaged, and is gone now.

    Only the first process removes and fits again: the others wait for what it writes.
    """
    while True:
        try:
            known = load_heads(path, model)
            return known.head, FitReport.load(told), float(known.card.cost)
        except (ScorerUnavailable, KeyError, TypeError, ValueError) as error:
            if is_first_process():
                cause = error.cause if isinstance(error, ScorerUnavailable) else f"{error}."
                say(f"  The fit in {path.name} is damaged and is fitted again: {cause}")
                path.unlink()
                return None
        time.sleep(_POLL_S)


def _held_out_said(rank: float) -> str:
    """What a layer reached; nothing where too few documents were there to hold any out."""
    return "" if math.isnan(rank) else f": rank correlation on documents held out {rank:.3f}"


def _profile(paths: Sequence[Path], label: str) -> Profile | None:
    """What each head should keep: by the questions' label where there is one, else by the fit's.

    None for `cis`, whose raw logits share no scale between heads.
    """
    if label == "cis":
        return None
    found = [load_recording(p, hidden=False) for p in paths]
    asked = [r for r in found if has_label(r, "questions")]
    if asked:
        return profile_of([target(r, "questions") for r in asked])
    return profile_of([target(r, label) for r in found if has_label(r, label)])


def _profile_of_scores(
    model: LoadedModel, head: RetainingHead, paths: Sequence[Path], chunk_tokens: int
) -> Profile:
    """What each head of a model keeps on average when one threshold is drawn over the scores."""
    scores = []
    for path in paths[:_PROFILE_DOCUMENTS]:
        with torch.inference_mode():
            scores.append(scores_of(model, head, load_recording(path), chunk_tokens).cpu())
    return profile_of(scores)


def is_first_process() -> bool:
    """Whether this process fits and writes; the others of one training only read their share."""
    return _rank() == 0


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _n_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _wait_for(paths: Sequence[Path]) -> None:
    """Until other processes have written their files; alone there is nothing to wait for."""
    while _n_processes() > 1 and not all(path.exists() for path in paths):
        time.sleep(_POLL_S)
