"""What the builders of question sets refuse, as one small tree.

QuestionsError       cause and next_step are for the user
|- UnknownSet        no set of that name
|- UnknownPart       the set has no such part or task; the message lists those there are
|- SourceMissing     a folder or file is not there
|- SourceMalformed   a file is there, but not in the set's layout; the message names it
|- BadRequest        a number that cannot work, with its bound
|- NothingLeft       every document was filtered out
`- OutputUnwritable  the set cannot be written where it should go
"""

from __future__ import annotations


class QuestionsError(Exception):
    """A refusal with its cause and the next step, both plain sentences."""

    def __init__(self, cause: str, next_step: str = "") -> None:
        super().__init__(f"{cause} {next_step}".strip())
        self.cause = cause
        self.next_step = next_step


class UnknownSet(QuestionsError):
    """No question set has this name."""


class UnknownPart(QuestionsError):
    """The set has no such part."""


class SourceMissing(QuestionsError):
    """The folder or file to build from is not there."""


class SourceMalformed(QuestionsError):
    """A source file is not in the layout of its set."""


class BadRequest(QuestionsError):
    """A number outside its bounds."""


class NothingLeft(QuestionsError):
    """No document meets what was asked for."""


class OutputUnwritable(QuestionsError):
    """The set cannot be written where it should go."""
