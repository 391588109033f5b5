"""What a benchmark refuses.

app.errors.AppError
|- ParityRed     the fast way and the plain way give different results: no figure is printed
|- RivalMissing  no Python with llama-cpp-python to measure against
`- ChildFailed   a process that measures for us ended or reported an error
"""

from __future__ import annotations

from app.errors import AppError


class ParityRed(AppError):
    """The parity check failed; speeds of wrong results are not figures."""

    exit_code = 1


class RivalMissing(AppError):
    """The rival is not installed where it was looked for."""

    exit_code = 2


class ChildFailed(AppError):
    """A measuring process failed; exit_code is the one its own error stands for."""

    def __init__(self, cause: str, next_step: str = "", exit_code: int = 1) -> None:
        super().__init__(cause, next_step)
        self.exit_code = exit_code
