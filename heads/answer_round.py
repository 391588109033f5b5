"""The fit through answers as a part of a training: it goes on where it was cut off, tells how it
goes, and looks at documents that are held out before and after.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heads.answer_fit import (
    ANSWER_FIT_VERSION,
    AnswerFitSettings,
    Distance,
    Step,
    distances,
    fit_through_answers,
)
from heads.layout import Layout
from heads.lessons import lessons_of
from heads.question_set import QuestionedDocument
from heads.retaining import (
    NEIGHBOURHOOD_SHARE,
    NEIGHBOURHOOD_TOKENS,
    RetainingHead,
    head_digest,
)
from heads.train import FitReport
from heads.train_plan import TrainSettings

if TYPE_CHECKING:
    from engine.loader import LoadedModel

_TELL_EVERY = 20  # steps
_HELD_DOCUMENTS, _HELD_KEPT = 5, (0.125, 0.0625, 0.03125)


@dataclass(frozen=True)
class Taught:
    """Heads that answers have taught, the curve, the seconds of all runs, and what documents held
    out lose before and after, as a card has it.
    """

    head: RetainingHead
    report: FitReport
    seconds: float
    held_out: list[dict[str, Any]]


def taught_by_answers(
    model: LoadedModel,
    layout: Layout,
    documents: Sequence[QuestionedDocument],
    paths: Sequence[Path],
    settings: TrainSettings,
    work: Path,
    head: RetainingHead,
    say: Callable[[str], None],
) -> Taught:
    """Fit through the answers of all documents that are not held out.

    paths  recordings of the documents
    work   folder where the state lies that a later run goes on from
    """
    how, answers = settings.recording, settings.answers
    lessons = lessons_of(layout, documents, paths, how.max_tokens)
    taught, held = lessons.taught, lessons.held_out[:_HELD_DOCUMENTS]
    n_asked = sum(len(lesson.asked) for lesson in taught)
    say(f"Through answers: {n_asked} questions of {len(taught)} documents.")

    def look(heads: RetainingHead) -> list[Distance]:
        if not held:
            return []
        return distances(model, heads, held, _HELD_KEPT, how.chunk_tokens, answers.questions)

    state = _state_file(work, head, answers, paths)
    curve = _Curve(state.with_suffix(".json"), answers.steps, say)
    before = look(head)
    fitted, seconds = fit_through_answers(
        model, head, taught, answers, how.chunk_tokens, state, curve.tell
    )
    pairs = list(zip(before, look(fitted), strict=True))
    for was, now in pairs:
        say(
            f"  {len(held)} documents held out, {now.kept:.4g} kept: {was.kl:.3f} to {now.kl:.3f} "
            f"nats from the full cache, {was.lost:+.3f} to {now.lost:+.3f} lost"
        )
    looked = [
        {"kept": now.kept, "kl_before": was.kl, "kl": now.kl}
        | {"lost_before": was.lost, "lost": now.lost}
        for was, now in pairs
    ]
    return Taught(fitted, curve.report, seconds, looked)


def _state_file(
    work: Path, head: RetainingHead, answers: AnswerFitSettings, paths: Sequence[Path]
) -> Path:
    """Named by all that the fit depends on."""
    key = json.dumps(
        [
            [ANSWER_FIT_VERSION, NEIGHBOURHOOD_TOKENS, NEIGHBOURHOOD_SHARE],
            head_digest(head),
            asdict(answers),
            [p.name for p in paths],
        ]
    )
    return work / f"answers-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


class _Curve:
    """What steps came to, told and kept every so many, those of earlier runs included."""

    def __init__(self, path: Path, n_steps: int, say: Callable[[str], None]) -> None:
        self.path, self.n_steps, self.say = path, n_steps, say
        self.report = FitReport.load(path) or FitReport([[]])
        self._latest: list[Step] = []

    def tell(self, step: Step) -> None:
        """Take in one step."""
        latest, done = self._latest, step.number + 1
        latest.append(step)
        if len(latest) < _TELL_EVERY and done < self.n_steps:
            return
        kl = sum(s.kl for s in latest) / len(latest)
        lost = sum(s.lost for s in latest) / len(latest)
        self.say(
            f"  step {done}/{self.n_steps}: {kl:.3f} nats from the full cache, "
            f"{lost:+.3f} lost of the true answers"
        )
        self.report.curves[0] = sorted((dict(self.report.curves[0]) | {done: kl}).items())
        self.report.save(self.path)
        latest.clear()
