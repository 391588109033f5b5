"""What a training is told, and what it will take: said before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import InvalidSetting
from engine.eviction import reserve_tokens
from engine.weights import linear_parameters
from heads.answer_fit import AnswerFitSettings
from heads.layout import Layout
from heads.lessons import ANSWER_TOKENS
from heads.question_set import QuestionedDocument
from heads.recordings import RecordSettings, kinds_for, recording_path
from heads.train import FitSettings

if TYPE_CHECKING:
    from engine.loader import LoadedModel

_REPLAY_FACTOR = 3.0  # forward passes a document token: reading, replay, and the questions
_QUESTION_TOKENS = 64  # about what a question and its layout take
# What a step on 3,000 tokens with six questions took, in tokens read meanwhile (heads/LOG.md).
_STEP_TOKENS = 2000
# Fitting a weight to a token, in what reading a token costs a weight: forward, gradients and the
# optimiser in fp32, as long as two trainings took (the default's card, Locret's in LEADERBOARD.md).
_FIT_FACTOR = 7.0


@dataclass(frozen=True)
class TrainSettings:
    """A whole training.

    rounds     1 reads with the full cache; each further round reads on-policy with the last heads;
               0 fits to no label: heads that are given go on through answers alone
    kept       the on-policy budget as a fraction
    answers    the fit through answers that follows, of the documents with questions; 0 steps: none
    """

    recording: RecordSettings = field(default_factory=RecordSettings)
    fitting: FitSettings = field(default_factory=FitSettings)
    rounds: int = 2
    kept: float = 0.25
    answers: AnswerFitSettings = field(default_factory=AnswerFitSettings)


@dataclass(frozen=True)
class TrainPlan:
    """What a training will take, said before it starts."""

    n_documents: int
    n_tokens: int
    forward_tokens: int
    fit_tokens: int
    disk_bytes: int
    memory_bytes: int

    def seconds(self, tokens_per_s: float) -> float:
        """Time for reading and fitting at a measured rate; fit_tokens is the fit in tokens read."""
        return (self.forward_tokens + self.fit_tokens) / tokens_per_s


def plan(
    model: LoadedModel,
    layout: Layout,
    documents: Sequence[QuestionedDocument],
    settings: TrainSettings,
    work: Path,
) -> TrainPlan:
    """Count tokens and bytes; nothing is read by the model.

    work    folder of the recordings: those of a first reading that lie there need no room
    Raises InvalidSetting if a document would be read beyond the model's window.
    """
    g = model.geometry
    counts = [
        min(len(layout.prefix(d.text).token_ids), settings.recording.max_tokens) for d in documents
    ]
    _check_window(model, max(counts, default=0))
    n_tokens = sum(counts)
    passes = _REPLAY_FACTOR * settings.rounds or 1.0
    hidden = n_tokens * g.n_layers * g.hidden_size * 2
    how = first_reading(settings)
    there = sum(
        n
        for n, document in zip(counts, documents, strict=True)
        if recording_path(work, model, layout, document, how, "").exists()
    )
    at_once = 2 * hidden if settings.rounds else 0
    if settings.answers.steps:
        at_once = max(at_once, _step_nbytes(model, max(counts, default=0), settings))
    return TrainPlan(
        len(documents),
        n_tokens,
        int(n_tokens * passes) + settings.answers.steps * _STEP_TOKENS,
        _fit_tokens(model, n_tokens, settings),
        max(settings.rounds, 1) * hidden - there * g.n_layers * g.hidden_size * 2,
        at_once,
    )


def _fit_tokens(model: LoadedModel, n_tokens: int, settings: TrainSettings) -> int:
    """What fitting to labels takes, in tokens that the model reads meanwhile."""
    g, fitting = model.geometry, settings.fitting
    locret = (g.n_q_heads + 2 * g.n_kv_heads) * g.head_dim
    n_in = locret if fitting.kind == "locret" else g.hidden_size
    weights = g.n_layers * fitting.width * (n_in + g.n_kv_heads)
    rows = settings.rounds * fitting.epochs * n_tokens
    return int(_FIT_FACTOR * rows * weights / linear_parameters(g))


def first_reading(settings: TrainSettings) -> RecordSettings:
    """How documents are read first: measured by the labels, if heads are to be fitted to some."""
    how = replace(settings.recording, kinds=kinds_for(settings.fitting.label))
    if settings.rounds:
        return how
    return replace(how, replay=False, kinds=(), max_questions=0, ask_itself=False)


def _check_window(model: LoadedModel, n_tokens: int) -> None:
    """Training reads at original positions, and asks after the last of them."""
    window = model.geometry.window
    reserve = reserve_tokens(window)
    if n_tokens + reserve > window:
        raise InvalidSetting(
            f"{n_tokens} tokens of a document, and {reserve} for questions, are more than "
            f"the model's window of {window}.",
            f"Cut documents with --max-tokens {max(window - reserve, 1)}.",
        )


def _step_nbytes(model: LoadedModel, n_tokens: int, settings: TrainSettings) -> int:
    """What a step through answers holds beside the model, about, on a document of n_tokens."""
    g = model.geometry
    n_answer = settings.answers.questions * ANSWER_TOKENS
    n_asked = n_answer + settings.answers.questions * _QUESTION_TOKENS
    activations = n_asked * g.n_layers * 16 * g.hidden_size * 4  # a layer's inner ones are wider
    document = n_tokens * g.n_layers * (g.hidden_size + 3 * settings.fitting.width) * 4
    logits = 4 * n_answer * g.vocab_size * 4
    mask = g.n_q_heads // g.n_kv_heads * n_asked * (n_tokens + n_asked) * 4
    return activations + document + logits + mask
