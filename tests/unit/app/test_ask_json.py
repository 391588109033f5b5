"""`ask --json` loses no answer: what there was before a failure or Ctrl-C is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from app.answers import Answer
from app.cli import main
from app.service import Reader

TINY = ["--model", "tiny", "--budget", "400", "--chunk", "128", "--max-new-tokens", "2"]
QUESTIONS = ["-q", "Who?", "-q", "Where?", "-q", "When?"]


def spoil(monkeypatch: pytest.MonkeyPatch, how: Callable[[Answer], Answer]) -> None:
    """Let something happen to the answer to "Where?"."""
    ask = Reader.ask

    def spoilt(self: Reader, session: Any, question: str, *given: Any, **named: Any) -> Answer:
        answer = ask(self, session, question, *given, **named)
        return how(answer) if question == "Where?" else answer

    monkeypatch.setattr(Reader, "ask", spoilt)


def no_memory(answer: Answer) -> Answer:
    raise MemoryError


def interrupted(answer: Answer) -> Answer:
    raise KeyboardInterrupt


def stopped(answer: Answer) -> Answer:
    return replace(answer, finish="stop")


@pytest.mark.parametrize(
    ("how", "code", "answered"),
    [
        (no_memory, 5, ["Who?"]),
        (interrupted, 130, ["Who?"]),
        (stopped, 130, ["Who?", "Where?"]),
    ],
)
def test_answers_before_a_failure_are_printed(
    how: Callable[[Answer], Answer],
    code: int,
    answered: list[str],
    typed_book: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch, how)
    assert main(["ask", typed_book, *QUESTIONS, "--json", *TINY]) == code
    report = json.loads(capsys.readouterr().out)
    assert [answer["question"] for answer in report["answers"]] == answered
    assert report["session"] and report["document"]["title"] == "book"
