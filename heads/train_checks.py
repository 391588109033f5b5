"""What a training refuses before anything is read, and its plan as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.errors import InvalidSetting
from heads.layout import Layout
from heads.lessons import check_lessons, is_held_out, lessons_of
from heads.question_set import QuestionedDocument
from heads.retaining import LocretHead, RetainingHead
from heads.train_plan import TrainSettings

NEEDS_QUESTIONS = ("questions", "cis")


def check_training(
    layout: Layout,
    documents: Sequence[QuestionedDocument],
    settings: TrainSettings,
    start: RetainingHead | LocretHead | None,
) -> None:
    """Raises InvalidSetting if nothing could be learnt.

    start  heads to go on from
    """
    if len(documents) < 2:
        raise InvalidSetting("Training needs at least two documents.", "Give more text.")
    _check_questions(layout, documents, settings)
    _check_answers(layout, documents, settings, start)


def _check_questions(
    layout: Layout, documents: Sequence[QuestionedDocument], settings: TrainSettings
) -> None:
    """A label that comes from questions needs a document that has some."""
    how = settings.recording
    if settings.fitting.label not in NEEDS_QUESTIONS or how.ask_itself:
        return
    for number, document in enumerate(documents):
        if document.questions and not is_held_out(number):
            prefix = layout.prefix(document.text)
            if prefix.n_header + prefix.n_document <= how.max_tokens:
                return
    raise InvalidSetting(
        f"No document of at most {how.max_tokens} tokens that is not held out comes with "
        f"questions, and the label '{settings.fitting.label}' is measured on them.",
        "Give question sets, a larger --max-tokens, or --ask-itself.",
    )


def _check_answers(
    layout: Layout,
    documents: Sequence[QuestionedDocument],
    settings: TrainSettings,
    start: RetainingHead | LocretHead | None,
) -> None:
    """Whether there are heads to fit, of a kind that answers fit, and questions to fit them by."""
    if settings.answers.steps and settings.fitting.kind != "retaining":
        raise InvalidSetting(
            "Answers fit heads whose scores compare across layers; Locret's do not.",
            "Leave out --answer-steps, or train heads of the kind 'retaining'.",
        )
    if settings.rounds == 0 and (start is None or not settings.answers.steps):
        raise InvalidSetting(
            "Without a round there is no fit to labels, and nothing to save.",
            "Give heads to go on from (--start) and --answer-steps, or at least one round.",
        )
    if start is not None and start.kind != settings.fitting.kind:
        raise InvalidSetting(
            f"The heads to go on from are of the kind '{start.kind}', not "
            f"'{settings.fitting.kind}'.",
            f"Train with --kind {start.kind}.",
        )
    if settings.answers.steps:
        anywhere = [Path()] * len(documents)  # not recorded yet
        check_lessons(lessons_of(layout, documents, anywhere, settings.recording.max_tokens).taught)
