"""The builders on the real public data: how many documents, and that no two sides share one."""

from __future__ import annotations

from pathlib import Path

import pytest

from heads.questions import leval, qmsum
from heads.questions.catalog import Request, build_set

QA = Path("qa")
KV = "lost_in_the_middle/kv-retrieval-{}_keys.first100.jsonl"
COUNTS = [
    ("fairytaleqa", "fairytaleqa", "train", 232, 8542),
    ("fairytaleqa", "fairytaleqa", "val", 23, 1024),
    ("leval", "leval", "coursera", 15, 172),
    ("leval", "leval", "scientific_qa", 14, 107),
    ("leval", "leval", "multidoc_qa", 20, 136),
    ("leval", "leval", "gsm100", 1, 100),
    ("loogle", "loogle_sample/shortdep_qa.jsonl", None, 4, 69),
    ("covidqa", "covidqa/200423_covidQA.half.json", None, 49, 830),
    ("xquad", "xquad/xquad.en.json", None, 47, 1169),
    ("kv", KV.format(75), None, 100, 500),
    ("kv", KV.format(140), None, 100, 500),
    ("nq", "lost_in_the_middle/nq-open-oracle.first500.jsonl", None, 61, 488),
]


@pytest.mark.parametrize(("name", "source", "part", "n_documents", "n_questions"), COUNTS)
def test_a_set_has_all_its_documents_once(
    name: str,
    source: str,
    part: str | None,
    n_documents: int,
    n_questions: int,
    shared_data: Path,
) -> None:
    made = build_set(name, Request(source=shared_data / QA / source, part=part))
    assert (len(made), sum(len(d.questions) for d in made)) == (n_documents, n_questions)
    assert len({d.text for d in made}) == len({d.name for d in made}) == len(made)
    assert all(q.text and all(q.answers) for d in made for q in d.questions)


def test_every_task_of_leval_is_read(shared_data: Path) -> None:
    for task in leval.TASKS:
        made = leval.build(shared_data / QA / "leval", task)
        assert made and len({d.text for d in made}) == len(made)


def test_no_text_of_qmsum_is_on_two_sides(shared_data: Path) -> None:
    folder, known = shared_data / QA / "qmsum", shared_data / QA / "leval"
    train, held = (qmsum.build(folder, part, known) for part in ("train", "held"))
    # Of 61 meetings, four are also L-Eval's.
    assert (len(train), len(held)) == (45, 12)
    kept = [qmsum.shingles(d.text) for d in held]
    assert not any(qmsum.occurs_in(d.text, kept) for d in train)
    meetings = [qmsum.shingles(d.text) for d in leval.build(known, "meeting_summ")]
    assert not any(qmsum.occurs_in(d.text, meetings) for d in (*train, *held))


def test_no_tale_is_on_two_sides(shared_data: Path) -> None:
    folder = shared_data / QA / "fairytaleqa"
    train, val = (build_set("fairytaleqa", Request(folder, part)) for part in ("train", "val"))
    kept = [qmsum.shingles(d.text) for d in val]
    assert not any(qmsum.occurs_in(d.text, kept) for d in train)
