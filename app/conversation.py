"""A question and its answer in the library: the question is stored before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from app.answers import Answer
from app.library import Library
from app.messages import FAULT, explain
from app.prompts import Turn
from app.records import ANSWER_DONE, ANSWER_FAILED, ANSWER_STOPPED, MessageRecord

if TYPE_CHECKING:
    from engine.generate import Sampling


class Asker(Protocol):
    """What answers; `service.Reader` in the program, a small fake in tests."""

    @property
    def ask(self) -> Callable[..., Answer]:
        """See Reader.ask."""


def answer_stored(
    library: Library,
    reader: Asker,
    session: Any,
    question: str,
    ids: tuple[int, int],
    sampling: Sampling | None = None,
    *,
    on_text: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
    history_tokens: int = 0,
) -> Answer:
    """Answer a question that is already in the library as `ids` (question, answer).

    The answer is stored whatever happens: whole, as far as it came when stopped, or with the
    reason of a failure, which is raised again.
    """
    question_id, answer_id = ids
    earlier = turns(library.messages(session.record.id), before=question_id)
    pieces: list[str] = []

    def keep(piece: str) -> None:
        pieces.append(piece)
        if on_text is not None:
            on_text(piece)

    try:
        answer = reader.ask(
            session,
            question,
            sampling,
            on_text=keep,
            stop=stop,
            history=earlier,
            history_tokens=history_tokens,
        )
    except BaseException as error:
        message = explain(error) or FAULT
        problem = {"problem": str(message), "error": type(error).__name__}
        library.set_answer(answer_id, "".join(pieces), ANSWER_FAILED, problem)
        raise
    state = ANSWER_STOPPED if answer.finish == "stop" else ANSWER_DONE
    library.set_answer(answer_id, answer.text, state, answer.to_dict())
    return answer


def turns(messages: Iterable[MessageRecord], before: int | None = None) -> list[Turn]:
    """Answered questions as turns, oldest first; only those stored before a message id."""
    rows = [m for m in messages if before is None or m.id < before]
    questions = {m.id: m.text for m in rows if m.role == "user"}
    return [
        Turn(questions[m.reply_to], m.text)
        for m in rows
        if m.role == "assistant" and m.state == ANSWER_DONE and m.reply_to in questions
    ]
