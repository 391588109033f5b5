"""The command `eval`: the promised JSON, a table to read, and refusals with their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.paths import data_paths
from heads.catalog import head_name
from heads.retaining import HeadCard, RetainingHead, save_heads
from tests.unit.app.tiny_reader import BOOK, tiny_loaded, use_tiny_model

FLAGS = ["--model", "tiny", "--chunk", "256", "--max-new-tokens", "3", "--kept", "0.9,0.7"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_tiny_model(monkeypatch)
    lines = BOOK.splitlines()
    documents = [
        {
            "context": "\n".join(lines[5 * n : 5 * n + 5]),
            "questions": [
                {"question": f"How many wolves met {m}?", "answers": [str(m * 31)]} for m in (1, 2)
            ],
        }
        for n in range(2)
    ]
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    return path


def evaluated(
    capsys: pytest.CaptureFixture[str], data: Path, *arguments: str
) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["eval", "--data", str(data), *FLAGS, *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_report_has_everything_promised(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = evaluated(capsys, data, "--scorers", "keydiff,recency", "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    assert {"f1", "recall", "nll"} <= set(found["full"])
    assert found["documents"] == 2 and found["questions"] == 4
    assert [(r["scorer"], r["kept"]) for r in found["rows"]] == [
        *(("keydiff", 0.9), ("keydiff", 0.7)),
        *(("recency", 0.9), ("recency", 0.7)),
    ]
    for row in found["rows"]:
        assert {"scorer", "kept", "f1", "recall", "nll", "bytes"} <= set(row)
        assert 0 <= row["f1"] <= 1 and row["bytes"] < found["full"]["bytes"]
    assert "document 2 of 2" in err


def test_the_usual_scorer_is_that_of_the_models_own_name(
    data: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Heads of `owner/model` lie under its whole name, of a file under what the loader calls it."""
    arguments = ("--model", "elsewhere/tiny.gguf", "--no-generate", "--json")
    code, out, err = evaluated(capsys, data, *arguments)
    assert code == 0, err
    assert {row["scorer"] for row in json.loads(out)["rows"]} == {"keydiff"}
    model: Any = tiny_loaded()
    folder = data_paths().models / "heads"
    save_heads(
        folder / head_name("retaining", model.name), RetainingHead(model.geometry, 4), HeadCard()
    )
    code, out, err = evaluated(capsys, data, *arguments)
    assert code == 0, err
    assert {row["scorer"] for row in json.loads(out)["rows"]} == {"retaining"}


def test_the_table_begins_with_the_full_cache(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = evaluated(capsys, data, "--chunked", "--no-generate", "--documents", "1")
    assert code == 0
    about, heading, full, *rows = out.splitlines()
    assert "1 document of" in about and "read in chunks" in about
    assert heading.split()[:3] == ["scorer", "kept", "F1"]
    assert full.split()[:4] == ["full", "cache", "1.000", "-"]
    assert [row.split()[:2] for row in rows] == [["keydiff", "0.900"], ["keydiff", "0.700"]]


def test_a_log_spares_the_second_run_the_reading(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ["--log", str(tmp_path / "log.jsonl"), "--json"]
    _, first, _ = evaluated(capsys, data, *log)

    def unwanted(*arguments: Any, **how: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("heads.evaluation.prefill", unwanted)
    assert evaluated(capsys, data, *log)[:2] == (0, first)


@pytest.mark.parametrize("flag", ["--scorers", "--kv-bits", "--kept"])
@pytest.mark.parametrize("empty", [",", "", " , "])
def test_an_empty_list_is_refused_not_taken_for_the_default(
    flag: str, empty: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluated(capsys, data, flag, empty)
    assert stopped.value.code == 2 and flag in capsys.readouterr().err


def test_a_log_that_cannot_be_kept_is_refused_before_the_model_is_loaded(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*arguments: Any, **how: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("engine.loader.load_model", unwanted)
    before = data.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(data)
    for log, said in (
        (data, "the question set itself"),
        (tmp_path / "link.jsonl", "the question set itself"),
        (data / "log.jsonl", "not a directory"),
    ):
        code, _, err = evaluated(capsys, data, "--log", str(log))
        assert code == 2 and said in err
        assert "Traceback" not in err and data.read_bytes() == before


def test_what_is_kept_above_a_share_is_said_once(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--scorers", "keydiff,recency", "--no-generate", "--kv-bits", "16,k8v4"]
    code, out, err = evaluated(capsys, data, *flags, "--kept", "0.9,0.01,0.02", "--json")
    assert code == 0, err
    found = json.loads(out)
    kept = {row["kept_tokens"] for row in found["rows"] if row["kept"] < 0.9}
    assert kept == {21}
    (said,) = (line for line in err.splitlines() if "always stay" in line)
    share = 21 / found["n_tokens"]  # both documents are of one length
    assert said == (
        "At least 21 entries a head always stay: "
        f"rows of 0.01 hold {share:.3f} of the tokens, rows of 0.02 hold {share:.3f} of the tokens."
    )
    assert "always stay" not in evaluated(capsys, data, *flags, "--json")[2]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--scorers", "none_such"], 2, "no scorer 'none_such'"),
        (["--oracle", "none_such"], 4, "no oracle 'none_such'"),
        (["--kept", "1.5"], 2, "1.5"),
        (["--no-full"], 2, "full reading"),
        (["--read-twice"], 2, "Add --chunked"),
        (["--refit"], 2, "Add --chunked"),
        (["--kv-bits", "8,3"], 2, "kv-bits '3'"),
    ],
)
def test_exit_codes(
    data: Path, arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _, err = evaluated(capsys, data, *arguments)
    assert found == code and said in err


def test_rows_that_were_read_twice_say_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--chunked", "--read-twice", "--no-generate", "--documents", "1"]
    code, out, err = evaluated(capsys, data, *flags, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["read_twice"] and [r["scorer"] for r in found["rows"]] == ["keydiff+twice"] * 2
    assert all(r["seconds"] > 0 for r in found["rows"])
    _, table, _ = evaluated(capsys, data, *flags)
    assert "read twice in chunks" in table and "keydiff+twice" in table


def test_a_refit_changes_the_likelihoods_and_says_so(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--chunked", "--no-generate", "--documents", "1"]
    plain, refitted = (
        json.loads(evaluated(capsys, data, *flags, *more, "--json")[1])
        for more in ([], ["--refit"])
    )
    assert not plain["refit"] and refitted["refit"]
    assert plain["full"]["nll"] == refitted["full"]["nll"]
    for before, after in zip(plain["rows"], refitted["rows"], strict=True):
        assert before["bytes"] == after["bytes"] and before["nll"] != after["nll"]
    assert "values refitted" in evaluated(capsys, data, *flags, "--refit")[1]


def test_a_bad_line_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_text('{"context": "c"}', encoding="utf-8")
    code, _, err = evaluated(capsys, data)
    assert code == 3 and "set.jsonl, line 1" in err


@pytest.mark.parametrize("chunked", [False, True])
def test_rows_in_fewer_bits_say_so_and_are_smaller(
    chunked: bool, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--documents", "1", "--no-generate", *(["--chunked"] if chunked else [])]
    bits = ["--kept", "0.9", "--kv-bits", "16,k8v4", "--json"]
    found = json.loads(evaluated(capsys, data, *flags, *bits)[1])
    assert [r["scorer"] for r in found["rows"]] == ["keydiff", "keydiff+k8v4"]
    fine, coded = found["rows"]
    assert coded["bytes"] < fine["bytes"] and coded["kept_tokens"] == fine["kept_tokens"]
    assert coded["nll"] != fine["nll"] and found["kv_bits"] == ["16", "k8v4"]


def test_at_equal_bytes_fewer_bits_keep_more_entries(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--documents", "1", "--no-generate", "--kept", "0.5", "--kv-bits", "16,k8v4"]
    found = json.loads(evaluated(capsys, data, *flags, "--equal-bytes", "--json")[1])
    fine, coded = found["rows"]
    assert coded["kept_tokens"] > fine["kept_tokens"] and found["equal_bytes"]
    entry = fine["bytes"] / fine["kept_tokens"]  # rows are whole entries a head
    assert 0.97 * fine["bytes"] < coded["bytes"] < fine["bytes"] + entry
