"""QMSum: meetings as lines of `Speaker: words`, with their general and specific queries.

Only meetings of QMSum's own train split are used, so this module splits them once more: `held` is
for measuring, `train` for everything else. The side of a meeting hangs on the SHA-256 of its words
alone (lower case, no punctuation): its first 32 bits modulo 4 are 0 for `held`, about a quarter.
It is therefore the same on every machine, for any subset, and however the file is named.

L-Eval's meeting_summ is made of QMSum train meetings. Given its folder, both parts leave those
meetings out: what is trained on is not measured, and nothing is measured twice. A meeting is in
L-Eval if a tenth of the shorter text's runs of eight words stand in the other too; copies with
other spaces, case or punctuation, and cut ones, are found that way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heads.question_set import QuestionedDocument
from heads.questions import leval
from heads.questions.documents import (
    check_folder,
    check_part,
    make_questions,
    merge_same_context,
    read_json,
    read_json_lines,
    words_of,
)
from heads.questions.errors import SourceMalformed, SourceMissing

PARTS = ("train", "held")
HELD_ONE_IN = 4
SHINGLE_WORDS = 8
SAME_TEXT_SHARE = 0.1


def build(
    folder: Path, part: str | None = None, leval_folder: Path | None = None
) -> list[QuestionedDocument]:
    """The meetings of one side of our split.

    folder        with DOMAIN/train/ID.json
    leval_folder  meetings whose text occurs in its tasks are left out
    Raises        UnknownPart, SourceMissing, SourceMalformed
    """
    part = check_part("qmsum", part, PARTS)
    paths = sorted(check_folder(folder).glob("*/train/*.json"))
    if not paths:
        raise SourceMissing(f"{folder} holds no DOMAIN/train/ID.json.", "Check the source's path.")
    meetings = merge_same_context(map(_meeting, paths))
    known = known_texts(leval_folder) if leval_folder else []
    return [
        meeting
        for meeting in meetings
        if is_held(meeting.text) == (part == "held") and not occurs_in(meeting.text, known)
    ]


def is_held(text: str) -> bool:
    """Whether a meeting's text is on the side kept for measuring."""
    digest = hashlib.sha256(" ".join(words_of(text)).encode()).hexdigest()
    return int(digest[:8], 16) % HELD_ONE_IN == 0


def known_texts(leval_folder: Path) -> list[set[int]]:
    """The shingles of every text of a L-Eval folder, one set a text."""
    tasks = [path for name in leval.FOLDERS for path in (leval_folder / name).glob("*.jsonl")]
    if not tasks:
        raise SourceMissing(f"{leval_folder} holds no tasks of L-Eval.", "Check its path.")
    texts = {str(row.get("input", "")) for path in sorted(tasks) for row in read_json_lines(path)}
    return [shingles(text) for text in texts]


def shingles(text: str) -> set[int]:
    """Hashes of all runs of SHINGLE_WORDS words; of the whole text if it is shorter."""
    words = words_of(text)
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return {hash(tuple(words[i : i + SHINGLE_WORDS])) for i in range(last)} if words else set()


def occurs_in(text: str, known: Sequence[set[int]]) -> bool:
    """Whether the text shares SAME_TEXT_SHARE of its or their shingles with any known text."""
    mine = shingles(text)
    return any(
        len(mine & theirs) >= SAME_TEXT_SHARE * min(len(mine), len(theirs))
        for theirs in known
        if mine and theirs
    )


def _meeting(path: Path) -> QuestionedDocument:
    value = read_json(path)
    try:
        lines = [
            f"{turn['speaker'].strip()}: {turn['content'].strip()}"
            for turn in value["meeting_transcripts"]
        ]
        queries: list[dict[str, Any]] = [
            *value.get("general_query_list", ()),
            *value.get("specific_query_list", ()),
        ]
        questions = make_questions((query["query"], [query["answer"]]) for query in queries)
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceMalformed(f"{path} is not a meeting of QMSum: {error!r}.") from error
    return QuestionedDocument(
        name=f"qmsum-{path.parent.parent.name}-{path.stem}",
        text="\n".join(lines),
        questions=questions,
    )
