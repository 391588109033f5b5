"""`questions` as a program sees it: the file, the counts, and the refusals with their codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from heads.question_set import QuestionedDocument
from heads.questions.catalog import SETS, Request, build_set
from heads.questions.documents import choose, make_questions, write_set
from heads.questions.errors import (
    BadRequest,
    NothingLeft,
    OutputUnwritable,
    UnknownPart,
    UnknownSet,
)
from tests.unit.heads.question_sources import meeting, write_json_lines, write_meetings, write_tale


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["questions", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def tales(folder: Path) -> Path:
    for i in range(6):
        asked = [(f"Q{n}?", f"answer {n}") for n in range(4)]
        write_tale(folder, "val", f"t{i}", ["é tale of four. " * 10 * (i + 1) + str(i)], asked)
    return folder


def test_a_set_is_written_in_the_one_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set.jsonl"
    arguments = ["fairytaleqa", "--source", str(tales(tmp_path / "t")), "--part", "val"]
    code, said, _ = run(capsys, *arguments, "--out", str(out))
    assert (code, said) == (0, f"6 documents, 24 questions: {out}\n")
    for line in lines(out):
        assert list(line) == ["id", "context", "questions"]
        assert line["questions"][1] == {"question": "Q1?", "answers": ["answer 1"]}
    assert "é tale" in out.read_text(encoding="utf-8")
    assert list(tmp_path.glob(".*")) == []


def test_json_prints_the_counts_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set.jsonl"
    code, said, err = run(
        capsys, "synthetic", "--part", "multikey", "--tokens", "600", "--documents", "3",
        "--per-document", "2", "--seed", "5", "--out", str(out), "--json",
    )  # fmt: skip
    assert code == 0 and err == ""
    assert json.loads(said) == {
        "set": "synthetic", "documents": 3, "questions": 6, "out": str(out),
    }  # fmt: skip
    assert [line["id"] for line in lines(out)] == [f"multikey-600-5-00{i}" for i in range(3)]


def test_the_file_is_the_same_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(tales(tmp_path / "t"))
    files = []
    for name in ("a", "b"):
        out = tmp_path / name
        run(
            capsys, "fairytaleqa", "--source", source, "--part", "val", "--documents", "3",
            "--per-document", "2", "--out", str(out),
        )  # fmt: skip
        files.append(out.read_bytes())
    assert files[0] == files[1] != b""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nosuch"], 2, "fairytaleqa, qmsum"),
        (["fairytaleqa", "--source", "{}/nowhere"], 2, "nowhere"),
        (["fairytaleqa"], 2, "--source"),
        (["fairytaleqa", "--source", "{}", "--part", "test"], 2, "train, val"),
        (["covidqa", "--source", "{}/broken.json"], 3, "broken.json is not JSON"),
        (["synthetic", "--tokens", "10"], 2, "below 2048"),
        (["synthetic", "--min-tokens", "99999"], 2, "99999"),
        (["synthetic", "--min-tokens", "-5"], 2, "min-tokens -5 is below 0"),
        (["synthetic", "--max-tokens", "-5"], 2, "max-tokens -5 is below 0"),
        (["synthetic", "--part", "single", "--per-document", "2"], 2, "Leave out --per-document"),
        (["synthetic", "--source", "{}/book.txt"], 2, "Leave out --source"),
    ],
)
def test_a_refusal_names_the_cause_and_writes_nothing(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "book.txt").write_text("A sentence. Another one.")
    out = tmp_path / "set.jsonl"
    filled = [argument.format(tmp_path) for argument in arguments]
    found, said, err = run(capsys, *filled, "--out", str(out))
    assert found == code and words in err and said == ""
    assert not out.exists() and "Traceback" not in err


def test_a_file_that_cannot_be_written_is_no_fault_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "synthetic", "--out", str(tmp_path / "no" / "set.jsonl"))
    assert code == 2 and "cannot be written" in err


@pytest.mark.parametrize("out", [".", "/", "{}"])
def test_a_folder_is_no_file_to_write(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(capsys, "synthetic", "--documents", "1", "--out", out.format(tmp_path))
    assert stopped.value.code == 2 and "is a folder" in capsys.readouterr().err
    with pytest.raises(OutputUnwritable, match="is a folder"):
        write_set([], Path(out.format(tmp_path)))


def test_a_text_that_cannot_be_written_is_refused_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "l" / "Open-ended-tasks" / "multidoc_qa.jsonl"
    source.parent.mkdir(parents=True)
    texts = [f"{n} {half}" for n, half in enumerate(("", r"\ud83d"))]
    rows = [f'{{"input": "{text}", "instructions": ["?"], "outputs": ["!"]}}' for text in texts]
    source.write_text("\n".join(rows), encoding="utf-8")
    out = tmp_path / "set.jsonl"
    out.write_text("before", encoding="utf-8")
    arguments = ["leval", "--source", str(tmp_path / "l"), "--part", "multidoc_qa"]
    code, said, err = run(capsys, *arguments, "--out", str(out))
    assert (code, said) == (3, "") and "leval-multidoc_qa-002 holds half" in err
    assert "Traceback" not in err and list(tmp_path.glob(".*")) == []
    assert out.read_text(encoding="utf-8") == "before"


def test_a_folder_that_is_a_file_cannot_be_written_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    code, _, err = run(capsys, "synthetic", "--out", str(tmp_path / "file" / "set.jsonl"))
    assert code == 2 and "cannot be written" in err


def test_leval_is_left_out_of_qmsum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = " ".join(f"word{i}" for i in range(50))
    folder = write_meetings(tmp_path / "q", {"D/m": meeting(said)})
    rows = [{"input": f"A: {said}", "instructions": ["?"], "outputs": ["!"]}]
    write_json_lines(tmp_path / "l" / "Open-ended-tasks" / "meeting_summ.jsonl", rows)
    out = tmp_path / "set.jsonl"
    codes = [
        run(capsys, "qmsum", "--source", str(folder), "--part", part, "--out", str(out), *more)[0]
        for more in ((), ("--exclude", str(tmp_path / "l")))
        for part in ("train", "held")
    ]
    assert sorted(codes[:2]) == [0, 2] and codes[2:] == [2, 2]


def test_what_a_set_has_no_use_for_is_refused_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="lengths of their own"):
        build_set("leval", Request(source=tmp_path, tokens=100))
    with pytest.raises(BadRequest, match="nothing to exclude"):
        build_set("leval", Request(source=tmp_path, exclude=tmp_path))
    with pytest.raises(UnknownPart, match="has no parts"):
        build_set("loogle", Request(source=tmp_path, part="val"))
    with pytest.raises(UnknownSet, match=", ".join(SETS)):
        build_set("squad", Request())


# How documents are chosen.


def documents() -> list[QuestionedDocument]:
    asked = make_questions((f"Q{n}?", ["a"]) for n in range(5))
    return [QuestionedDocument(f"d{i}", "x" * 40 * i, asked) for i in range(1, 11)]


def test_bounds_of_length_are_both_included() -> None:
    chosen = choose(documents(), min_tokens=30, max_tokens=50)
    assert [d.name for d in chosen] == ["d3", "d4", "d5"]
    with pytest.raises(NothingLeft, match="10 documents has 31 to 39"):
        choose(documents(), min_tokens=31, max_tokens=39)
    with pytest.raises(BadRequest, match="min-tokens 5 is above max-tokens 4"):
        choose(documents(), min_tokens=5, max_tokens=4)


def test_a_sample_is_seeded_and_keeps_the_order() -> None:
    chosen = choose(documents(), n_documents=4, per_document=2, seed=1)
    assert chosen == choose(documents(), n_documents=4, per_document=2, seed=1)
    assert chosen != choose(documents(), n_documents=4, per_document=2, seed=2)
    names = [int(d.name[1:]) for d in chosen]
    assert names == sorted(names) and len(names) == 4
    assert all(len(d.questions) == 2 for d in chosen)
    assert all(list(d.questions) == sorted(d.questions, key=lambda q: q.text) for d in chosen)
    assert len({d.questions for d in chosen}) > 1
    with pytest.raises(BadRequest, match="per-document 0"):
        choose(documents(), per_document=0)


def test_the_help_names_every_set() -> None:
    from app.commands.questions import NAMES

    assert tuple(SETS) == NAMES
