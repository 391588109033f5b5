"""The question sets by name, and one function that builds any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from heads.question_set import QuestionedDocument
from heads.questions import (
    covidqa,
    fairytaleqa,
    leval,
    loogle,
    lost_in_the_middle,
    nq,
    qmsum,
    synthetic,
    xquad,
)
from heads.questions.documents import choose, read_text
from heads.questions.errors import BadRequest, SourceMissing, UnknownPart, UnknownSet


@dataclass(frozen=True)
class Request:
    """What is asked of a set; None leaves it to the set.

    source        its folder or file; for `synthetic` a text to hide facts in
    part          split or task
    tokens        length of made documents
    n_documents, per_document, min_tokens, max_tokens, seed   see `choose`
    exclude       folder of L-Eval whose meetings are left out (qmsum)
    """

    source: Path | None = None
    part: str | None = None
    tokens: int | None = None
    n_documents: int | None = None
    per_document: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    seed: int = 0
    exclude: Path | None = None

    def path(self) -> Path:
        """The source; raises SourceMissing if none is named."""
        if self.source is None:
            raise SourceMissing("This set is read from files.", "Name them with --source.")
        return self.source


@dataclass(frozen=True)
class QuestionSet:
    """How one set is built, and which settings mean something to it."""

    build: Callable[[Request], list[QuestionedDocument]]
    parts: Sequence[str] = ()
    takes_tokens: bool = False
    takes_exclude: bool = False


SETS: dict[str, QuestionSet] = {
    "fairytaleqa": QuestionSet(
        lambda r: fairytaleqa.build(r.path(), r.part), parts=fairytaleqa.PARTS
    ),
    "qmsum": QuestionSet(
        lambda r: qmsum.build(r.path(), r.part, r.exclude),
        parts=qmsum.PARTS,
        takes_exclude=True,
    ),
    "leval": QuestionSet(lambda r: leval.build(r.path(), r.part), parts=leval.TASKS),
    "loogle": QuestionSet(lambda r: loogle.build(r.path())),
    "covidqa": QuestionSet(lambda r: covidqa.build(r.path())),
    "xquad": QuestionSet(lambda r: xquad.build(r.path(), r.tokens, r.seed), takes_tokens=True),
    "nq": QuestionSet(
        lambda r: nq.build(r.path(), r.tokens, r.n_documents, r.per_document, r.seed),
        takes_tokens=True,
    ),
    "kv": QuestionSet(lambda r: lost_in_the_middle.build(r.path(), r.per_document, r.seed)),
    "synthetic": QuestionSet(
        lambda r: synthetic.build(
            r.part,
            r.tokens,
            r.n_documents,
            r.per_document,
            r.seed,
            read_text(r.source) if r.source else None,
        ),
        parts=synthetic.TASKS,
        takes_tokens=True,
    ),
}


def build_set(name: str, request: Request) -> list[QuestionedDocument]:
    """The documents of a set that meet the request. Deterministic.

    Raises UnknownSet, UnknownPart, SourceMissing, SourceMalformed, BadRequest, NothingLeft; a
    setting that the set has no use for is a BadRequest, never ignored
    """
    if name not in SETS:
        raise UnknownSet(f"There is no set {name!r}.", f"Choose one of {', '.join(SETS)}.")
    chosen = SETS[name]
    if request.part is not None and not chosen.parts:
        raise UnknownPart(f"{name} has no parts.", "Leave out --part.")
    if request.tokens is not None and not chosen.takes_tokens:
        raise BadRequest(
            f"The documents of {name} have lengths of their own.",
            "Choose among them with --min-tokens and --max-tokens.",
        )
    if request.exclude is not None and not chosen.takes_exclude:
        raise BadRequest(f"{name} has nothing to exclude.", "Leave out --exclude.")
    return choose(
        chosen.build(request),
        n_documents=request.n_documents,
        min_tokens=request.min_tokens,
        max_tokens=request.max_tokens,
        per_document=request.per_document,
        seed=request.seed,
    )
