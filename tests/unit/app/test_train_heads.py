"""The command `train-heads`: what it says beforehand, what it leaves behind, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from app.cli import main
from app.commands.training_data import training_documents
from heads.catalog import default_scorer, make_scorer
from heads.question_set import Question, read_question_set
from heads.retaining import HeadCard, RetainingHead, load_heads, save_heads
from tests.unit.app.tiny_reader import BOOK, tiny_loaded, use_tiny_model

FLAGS = ["--width", "4", "--epochs", "1", "--max-tokens", "400"]
LINES = BOOK.splitlines()


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_model(monkeypatch)


def question_set(path: Path, n_documents: int) -> Path:
    documents = [
        {
            "context": "\n".join(LINES[4 * n : 4 * n + 4]),
            "questions": [{"question": "How many wolves?", "answers": [str(n * 31)]}],
        }
        for n in range(n_documents)
    ]
    path.write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return question_set(tmp_path / "set.jsonl", 3)


def no_constants(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


def called(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, Any, str]:
    """Exit code, the JSON on stdout, and stderr."""
    capsys.readouterr()
    code = main(["train-heads", "tiny", *map(str, arguments), *FLAGS, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out, parse_constant=no_constants) if out else None, err


def test_a_plan_says_what_it_takes_and_trains_nothing(
    data: Path, data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*arguments: Any, **how: Any) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr("heads.training.train", unwanted)
    code, found, err = called(capsys, "--data", data, "--plan")
    assert code == 0 and set(found) == {"plan"}
    plan = found["plan"]
    assert plan["documents"] == 3 and 0 < plan["tokens"] <= 1200
    assert plan["forward_tokens"] > plan["tokens"] and plan["tokens_per_s"] > 0
    work = plan["forward_tokens"] + plan["fit_tokens"]
    assert plan["seconds"] == pytest.approx(work / plan["tokens_per_s"])
    assert plan["disk_bytes"] > 0 and plan["memory_bytes"] > 0
    assert "3 documents" in err and "tokens a second" in err and "GiB on disk" in err
    assert not list(data_dir.rglob("*.safetensors"))


def test_a_training_leaves_heads_a_card_and_a_curve(
    data: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, err = called(capsys, "--data", data, "--licence", "CC0")
    assert code == 0, err
    heads = data_dir / "models" / "heads" / "tiny.retaining.safetensors"
    assert found["heads"] == str(heads) and found["bytes"] == heads.stat().st_size
    assert found["kind"] == "retaining" and found["seconds"] > 0 and len(found["rounds"]) == 2
    assert set(found["rounds"][0]) == {"held_loss", "held_rank"}
    assert found["rounds"][0]["held_rank"] is None, "of three documents none is held out"
    root = ElementTree.parse(found["loss_plot"]).getroot()
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 2
    card = Path(found["card"]).read_text(encoding="utf-8")
    assert "3 documents" in card and "set.jsonl" in card and "CC0" in card and "on cpu" in card
    model: Any = tiny_loaded()
    assert default_scorer("tiny", heads.parent) == "retaining"
    assert make_scorer("retaining", model, state_dir=heads.parent).name == "retaining"
    code, again, err = called(capsys, "--data", data, "--licence", "CC0")
    assert code == 0 and again["rounds"] == found["rounds"]
    assert again["loss_plot"] == found["loss_plot"], "a fit of before is drawn again"


def test_held_out_documents_are_told_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = question_set(tmp_path / "set.jsonl", 8)
    code, found, _ = called(capsys, "--data", data, "--rounds", "1")
    (only,) = found["rounds"]
    assert code == 0 and -1 <= only["held_rank"] <= 1 and only["held_loss"] > 0


def test_ones_own_documents_and_folders_train_heads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "books"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("\n".join(LINES[:6]), encoding="utf-8")
    (folder / "deep" / "b.txt").write_text("\n".join(LINES[6:12]), encoding="utf-8")
    out = tmp_path / "out" / "my.safetensors"
    code, found, err = called(capsys, "--data", folder, "--out", out, "--rounds", "1")
    assert code == 0, err
    assert found["plan"]["documents"] == 2 and found["heads"] == str(out) and out.is_file()


def test_a_file_that_cannot_be_read_is_named_and_in_a_folder_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    bad = folder / "bad.pdf"
    bad.write_bytes(b"%PDF-1.7 and nothing else")
    code, _, err = called(capsys, "--data", folder, "--plan")
    assert code == 3 and str(bad) in err and str(folder) in err
    (folder / "a.txt").write_text("\n".join(LINES[:6]), encoding="utf-8")
    (folder / "set.jsonl").write_text("{}", encoding="utf-8")
    (folder / "b.txt").write_text("\n".join(LINES[6:12]), encoding="utf-8")
    code, found, err = called(capsys, "--data", folder, "--plan")
    assert code == 0 and found["plan"]["documents"] == 2
    assert f"Left out: {bad}: " in err and f"Left out: {folder / 'set.jsonl'}: " in err
    assert "2 documents, " in err
    code, _, err = called(capsys, "--data", folder / "a.txt", bad, "--plan")
    assert code == 3 and f"{bad}: " in err


def test_copies_of_a_document_become_one_that_has_all_their_questions(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = read_question_set(data)
    more = [Question("Where?", ("by the sea",)), first.questions[0]]
    copy = {
        "context": "  " + first.text.replace("\n", "\n\n"),
        "questions": [{"question": q.text, "answers": q.answers} for q in more],
    }
    (tmp_path / "more.jsonl").write_text(json.dumps(copy), encoding="utf-8")
    (tmp_path / "copy.txt").write_text(first.text, encoding="utf-8")
    own = [data, tmp_path / "more.jsonl", tmp_path / "copy.txt"]
    capsys.readouterr()
    found = training_documents(own)
    assert [d.name for d in found] == [d.name for d in read_question_set(data)]
    assert found[0] == replace(first, questions=(*first.questions, more[0]))
    assert "2 documents left out" in capsys.readouterr().err
    assert len(training_documents([data])) == 3 and capsys.readouterr().err == ""
    code, _, err = called(capsys, "--data", tmp_path / "copy.txt", tmp_path / "more.jsonl")
    assert code == 2 and "1 document left out" in err and "at least two documents" in err


@pytest.mark.parametrize("flag", [(), ("--ask-itself",)])
def test_the_model_asks_itself_only_when_told(
    flag: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[int] = []

    def own(model: Any, layout: Any, cache: Any, closing: Any) -> list[tuple[str, str]]:
        asked.append(cache.n_seen)
        return [("Who?", "Someone.")]

    monkeypatch.setattr("heads.recordings.self_asked", own)
    files = (tmp_path / "a.txt", tmp_path / "b.txt")
    for first, file in zip((0, 6), files, strict=True):
        file.write_text("\n".join(LINES[first : first + 6]), encoding="utf-8")
    code, _, err = called(capsys, "--data", *files, "--rounds", "1", *flag)
    assert code == 0, err
    assert len(asked) == (2 if flag else 0)


def card_of(path: Path) -> HeadCard:
    model: Any = tiny_loaded()
    return load_heads(path, model).card


def page_of(path: Path) -> str:
    return path.with_suffix(".md").read_text(encoding="utf-8")


def test_heads_go_on_from_others(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [tmp_path / f"{n}.safetensors" for n in range(2)]
    one = ["--data", data, "--rounds", "1"]
    assert called(capsys, *one, "--out", out[0])[0] == 0
    assert called(capsys, *one, "--out", out[1], "--start", out[0])[0] == 0
    assert out[0].read_bytes() != out[1].read_bytes()
    first, second = (card_of(path) for path in out)
    assert first.start == "" and "Goes on from" not in page_of(out[0])
    digest = sha256(out[0].read_bytes()).hexdigest()
    assert second.start == f"0.safetensors, SHA-256 {digest}" and second.label == "blend"
    assert f"- **Goes on from**: {second.start}\n" in page_of(out[1])
    code, _, err = called(capsys, *one, "--start", tmp_path / "none.safetensors")
    assert code == 4 and "no retaining heads at" in err


def heads_of(path: Path, base_model: str) -> Path:
    """A file of heads that fits the tiny model, and says that it is another's."""
    save_heads(path, RetainingHead(tiny_loaded().geometry, 4), HeadCard(base_model, "kvzip"))
    return path


@pytest.mark.parametrize("plan", [(), ("--plan",)])
def test_heads_of_another_model_are_nothing_to_go_on_from(
    plan: tuple[str, ...], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = heads_of(tmp_path / "other.safetensors", "smollm2-135m")
    code, out, err = called(capsys, "--data", data, "--start", other, *plan)
    assert (code, out) == (4, None)
    assert "other.safetensors were made for smollm2-135m, not for tiny" in err
    unnamed = heads_of(tmp_path / "unnamed.safetensors", "")
    assert called(capsys, "--data", data, "--start", unnamed, "--plan")[0] == 0


def test_a_plan_refuses_what_a_training_refuses(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = question_set(tmp_path / "one.jsonl", 1)
    refused = [
        (["--data", one], 2, "at least two documents"),
        (["--data", data, "--start", tmp_path / "none.safetensors"], 4, "no retaining heads at"),
        (["--data", data, "--rounds", "0"], 2, "nothing to save"),
    ]
    for arguments, expected, reason in refused:
        code, out, err = called(capsys, *arguments, "--plan")
        assert (code, out) == (expected, None) and reason in err


def test_heads_learn_through_answers(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [tmp_path / f"{n}.safetensors" for n in range(2)]
    assert called(capsys, "--data", data, "--rounds", "1", "--out", out[0])[0] == 0
    go_on = ["--data", data, "--rounds", "0", "--answer-steps", "2", "--out", out[1]]
    code, found, err = called(capsys, *go_on, "--start", out[0])
    assert code == 0, err
    assert "3 questions of 3 documents" in err and "step 2/2" in err and found["rounds"] == []
    assert "2 steps through answers" in Path(found["card"]).read_text(encoding="utf-8")
    assert "loss_plot" not in found
    assert "nats from the full cache" in Path(found["answers_plot"]).read_text(encoding="utf-8")
    assert out[0].read_bytes() != out[1].read_bytes()
    code, _, err = called(capsys, *go_on)
    assert code == 2 and "nothing to save" in err


@pytest.mark.parametrize(("label", "said"), [("kvzip", "kvzip"), ("", "a label not stated")])
def test_without_a_round_the_label_is_that_of_the_heads_gone_on_from(
    label: str, said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.safetensors"
    save_heads(old, RetainingHead(tiny_loaded().geometry, 4), HeadCard("tiny", label))
    go_on = ["--data", data, "--rounds", "0", "--answer-steps", "1", "--start", old, "--out", old]
    digest = sha256(old.read_bytes()).hexdigest()
    assert called(capsys, *go_on)[0] == 0
    assert card_of(old).label == f"{said}, then 1 steps through answers"
    assert card_of(old).start == f"old.safetensors, SHA-256 {digest}", "of the file before"


def test_locret_has_its_own_label_loss_and_place(
    data: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, err = called(capsys, "--data", data, "--kind", "locret", "--rounds", "1")
    assert code == 0, err
    assert found["kind"] == "locret" and found["heads"].endswith("tiny.locret.safetensors")
    model: Any = tiny_loaded()
    card = make_scorer("locret", model, state_dir=data_dir / "models" / "heads").card  # type: ignore[attr-defined]
    assert card.label == "cis" and card.settings["fitting"]["loss"] == "locret"


def test_what_cannot_be_trained_on_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = question_set(tmp_path / "one.jsonl", 1)
    code, out, err = called(capsys, "--data", one)
    assert (code, out) == (2, None) and "at least two documents" in err
    code, out, err = called(capsys, "--data", tmp_path / "missing.jsonl")
    assert (code, out) == (3, None) and "missing.jsonl" in err
    bad = question_set(tmp_path / "bad.jsonl", 2)
    bad.write_text(bad.read_text(encoding="utf-8") + '\n{"context": 3}', encoding="utf-8")
    code, out, err = called(capsys, "--data", bad)
    assert (code, out) == (3, None) and "bad.jsonl, line 3" in err


def test_another_process_of_a_training_writes_and_prints_nothing(
    data: Path,
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert called(capsys, "--data", data)[0] == 0  # the first process has written its heads
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    mine = tmp_path / "mine.safetensors"
    code, found, err = called(capsys, "--data", data, "--out", mine)
    assert code == 0 and found is None and not mine.exists()
    assert "About" not in err and "Round" not in err, "one process tells what all do"
    assert called(capsys, "--data", data, "--plan")[:2] == (0, None)


def test_heads_of_another_kind_are_nothing_to_go_on_from(
    data: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.safetensors"
    assert called(capsys, "--data", data, "--kind", "locret", "--rounds", "1", "--out", old)[0] == 0
    code, _, err = called(capsys, "--data", data, "--start", old)
    assert code == 2 and "kind 'locret'" in err and "--kind locret" in err


@pytest.mark.parametrize("flags", [["--epochs", "0"], ["--epochs", "x"], ["--kept", "1.5"]])
def test_settings_out_of_range_are_refused(data: Path, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train-heads", "tiny", "--data", str(data), *flags])
    assert stopped.value.code == 2
