"""The command line as a program sees it: JSON on stdout, words on stderr, true exit codes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kernels
from app.cli import build_parser, main
from app.commands import ask as commands_ask
from app.progress import ProgressLine, RateMeter, clock_text
from engine.registry import find
from tests.unit.app.tiny_reader import BOOK, use_tiny_model

COMMANDS = [
    *("ui", "ask", "ingest", "sessions", "delete", "export", "import", "models", "eval"),
    *("questions", "train-heads", "doctor"),
]
TINY = ["--model", "tiny", "--budget", "400", "--chunk", "128"]
ROOT = Path(__file__).resolve().parents[3]


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    """Exit code, the JSON on stdout, and stderr."""
    capsys.readouterr()
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_a_data_dir(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "--data-dir" in out
    assert "--json" in out or command == "ui"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from app.cli import build_parser; build_parser();"
        "print([m for m in ('torch', 'gradio', 'pymupdf', 'transformers', 'sqlite_utils')"
        " if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_the_data_dir_may_stand_on_either_side() -> None:
    parser = build_parser()
    assert parser.parse_args(["--data-dir", "x", "sessions"]).data_dir == "x"
    assert parser.parse_args(["sessions", "--data-dir", "x"]).data_dir == "x"


def test_ask_prints_one_object_with_everything_promised(
    typed_book: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*TINY, "--max-new-tokens", "6", "--json"]
    code, first, err = ask(capsys, "ask", typed_book, "-q", "Who?", "-q", "Where?", *flags)
    assert code == 0 and "Reading" in err
    assert [a["question"] for a in first["answers"]] == ["Who?", "Where?"]
    assert {
        "question", "text", "citations", "looked_back_pages", "ttft_s", "decode_tok_s",
        "new_tokens",
    } <= set(first["answers"][0])  # fmt: skip
    took = first["answers"][0]
    assert 0 <= took["packing_s"] <= took["answer_s"] - took["ttft_s"]
    assert {"title", "pages", "tokens", "sha256"} <= set(first["document"])
    assert {
        "budget_tokens", "kept_tokens", "kept_fraction", "bytes", "k_bits", "v_bits", "scorer",
        "allocation", "positions",
    } <= set(first["cache"])  # fmt: skip
    assert {"parse_s", "prefill_s", "prefill_tok_s", "restore_s"} <= set(first["timing"])
    assert len(first["timing"]["prefill_quarter_tok_s"]) == 4
    assert {"peak_rss_bytes", "before_read_rss_bytes", "after_model_rss_bytes"} <= set(
        first["memory"]
    )
    assert first["reused"] is False and first["reused_tokens"] == 0
    assert first["prefilled_tokens"] > first["document"]["tokens"]
    code, second, _ = ask(capsys, "ask", typed_book, "-q", "Where?", *flags)
    assert code == 0 and second["reused"] is True and second["session"] == first["session"]
    assert second["prefilled_tokens"] < 400 and second["reused_tokens"] == 400
    assert second["answers"][0]["text"] == first["answers"][1]["text"]
    assert second["timing"]["prefill_s"] == 0 and second["timing"]["restore_s"] > 0


def test_several_files_give_one_line_each_and_a_bad_one_does_not_stop_the_rest(
    typed_book: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("The bird sang. " * 20)
    files = [typed_book, str(tmp_path / "missing.txt"), str(other)]
    code = main(["ask", *files, "-q", "Who?", "--json", *TINY, "--max-new-tokens", "2"])
    out, err = capsys.readouterr()
    assert code == 3 and "missing.txt" in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["document"]["title"] for line in lines] == ["book", "other"]


def test_the_library_commands_work_together(
    typed_book: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, read, _ = ask(capsys, "ingest", typed_book, "--json", *TINY)
    session = read["session"]
    _, listed, _ = ask(capsys, "sessions", "--json")
    assert [(s["session"], s["state"]) for s in listed] == [(session, "ready")]
    target = tmp_path / "s.longread"
    code, exported, _ = ask(capsys, "export", session[:8], str(target), "--json")
    assert code == 0 and exported["bytes"] == target.stat().st_size
    code, deleted, _ = ask(capsys, "delete", session, "--json")
    assert deleted == {"deleted": [session]}
    assert ask(capsys, "sessions", "--json")[1] == []
    code, imported, _ = ask(capsys, "import", str(target), "--json")
    assert [s["session"] for s in imported] == [session]
    code, answered, _ = ask(
        capsys, "ask", session, "-q", "Who?", "--json", "--max-new-tokens", "2", "--model", "tiny"
    )
    assert code == 0 and answered["reused"] is True


def test_parse_only_loads_no_model(typed_book: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, parsed, _ = ask(capsys, "ingest", typed_book, "--parse-only", "--json")
    assert code == 0
    assert (parsed["kind"], parsed["pages"], parsed["warnings"]) == ("txt", 1, [])
    assert parsed["characters"] == len(BOOK)
    assert main(["ingest", typed_book, "--parse-only"]) == 0
    assert f"txt, 1 {parsed['page_kind']}, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ask", "missing.pdf", "-q", "Who?"], 3),
        (["ask", "missing.pdf"], 2),
        (["ask", "missing.pdf", "-q", " "], 2),
        (["ask", "x", "-q", "y", "--pages", "9-3"], 2),
        (["ask", "x", "-q", "y", "--budget", "-4"], 2),
        (["ask", "x", "-q", "y", "--temperature", "-1"], 2),
        (["nonsense"], 2),
        (["delete", "feedbeef"], 2),
        (["export", "feedbeef"], 2),
        (["import", "missing.longread"], 3),
        (["models", "get"], 2),
        (["models", "get", "no-such-model"], 4),
        (["ingest", "missing.pdf", "--parse-only"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_exit_codes(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        found: Any = main(arguments)
    except SystemExit as ended:
        found = ended.code
    out, err = capsys.readouterr()
    assert found == code and out == "" and err.strip()


def test_a_damaged_session_ends_with_the_flag_that_helps(
    typed_book: str, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, read, _ = ask(capsys, "ingest", typed_book, "--json", *TINY)
    (data_dir / "snapshots" / read["session"] / "state.safetensors").unlink()
    code, out, err = ask(capsys, "ask", typed_book, "-q", "Who?", "--json", *TINY)
    assert (code, out) == (1, None)
    assert "state.safetensors" in err and "--reread" in err
    assert "state.safetensors" in (data_dir / "logs" / "longread.log").read_text()
    code, again, err = ask(
        capsys,
        "ask",
        typed_book,
        "-q",
        "Who?",
        "--json",
        *TINY,
        "--reread",
        "--max-new-tokens",
        "2",
    )
    assert code == 0, f"{err}\n{(data_dir / 'logs' / 'longread.log').read_text()}"
    assert again["reused"] is False


def test_our_own_fault_goes_to_the_log_with_its_traceback(
    typed_book: str,
    data_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: Any, **how: Any) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr("app.service.Reader.open", broken)
    code, out, err = ask(capsys, "ingest", typed_book, "--json")
    assert (code, out) == (1, None) and "longread.log" in err
    assert "ZeroDivisionError: odd" in (data_dir / "logs" / "longread.log").read_text()


def test_an_interrupt_is_130(
    typed_book: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **how: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.service.Reader.open", interrupted)
    assert ask(capsys, "ingest", typed_book, "--json")[0] == 130


def test_doctor_reports_versions_device_and_repairs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_model(monkeypatch)
    code, report, _ = ask(capsys, "doctor", "--json")
    assert code == 0
    assert report["versions"]["torch"] and report["versions"]["sqlite-utils"]
    assert report["device"] in ("cpu", "cuda")
    assert report["kernels"] == kernels.describe(report["device"])
    assert report["compute_format"]["reason"] == "said by the test"
    assert any("default model" in problem["what"] for problem in report["problems"])
    assert all(problem["repair"] for problem in report["problems"])


def test_doctor_names_folders_that_nothing_in_the_library_has(
    typed_book: str, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(capsys, "ingest", typed_book, "--json", *TINY)
    names = (
        "documents/" + "ab" * 32,
        "snapshots/" + "ab" * 12,
        "snapshots/" + "cd" * 12 + ".partial",
    )
    stray = [data_dir / name for name in names]
    for folder in stray:
        folder.mkdir()
    _, report, _ = ask(capsys, "doctor", "--json")
    said = [found["what"] for found in report["problems"] if "belongs to nothing" in found["what"]]
    assert [str(folder) in what for folder, what in zip(stray, said, strict=True)] == [True] * 3


def test_doctor_prints_the_kernels_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_model(monkeypatch)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith("Kernels ")]
    assert len(found) == 1 and "log-sum-exp" in found[0]


def test_doctor_on_a_card_says_what_the_card_computes_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_model(monkeypatch)
    card = SimpleNamespace(name="A card", total_memory=12 << 30)
    monkeypatch.setattr("engine.device.pick_device", lambda device: "cuda")
    monkeypatch.setattr("kernels.describe", lambda device: "reference: Triton does not start")
    monkeypatch.setattr("app.memory.available_bytes", lambda device: 10 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    code, report, _ = ask(capsys, "doctor", "--json")
    assert code == 0 and report["gpu"]["name"] == "A card"
    assert report["compute_format"]["name"] == "fp32"
    assert "7.5" in report["compute_format"]["reason"]
    assert report["answer_format"]["name"] == "stock"
    assert report["kernels"] == "reference: Triton does not start"


def test_models_says_what_is_here_and_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, report, _ = ask(capsys, "models", "--json")
    assert code == 0
    default = [row for row in report["models"] if row["is_default"]]
    assert len(default) == 1 and default[0]["state"] == "absent"
    for row in report["models"]:
        for fit in row["fits"].values():
            assert set(fit["fitting_budgets"]) <= {int(b) for b in fit["needed_bytes"]}


def test_speed_is_told_over_the_latest_chunks_and_by_quarters() -> None:
    times = iter([0.0, 1.0, 2.0, 4.0, 8.0])
    meter = RateMeter(lambda: next(times))
    meter.start(0, 400)
    for done in (100, 200, 300, 400):
        meter.update(done, 400)
    assert meter.quarters() == [100.0, 100.0, 50.0, 25.0]
    assert meter.tok_s == 50.0 and meter.eta_s == 0.0
    assert RateMeter().quarters() == []


def test_progress_without_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    for done in range(0, 1001, 10):
        line("read", done, 1000)
    err = capsys.readouterr().err
    assert "\r" not in err and "\x1b" not in err
    assert err.splitlines()[0] == "Reading: 0 of 1000 tokens"
    assert err.splitlines()[-1].startswith("Reading: 1000 of 1000 tokens")
    assert len(err.splitlines()) < 5


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (3900, "1 h 5 min")]
)
def test_times_are_told_as_people_tell_them(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_the_sum_of_a_large_model_on_a_small_card(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["models", "show", "llama-3.1-8b", "--budget", "16384", "--memory", "12"]
    fine = [*flags, "--kv-bits", "16"]
    assert main([*fine, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["total_bytes"] == sum(found["terms_bytes"].values())
    # 6.98 B weights in linear layers at 0.516 bytes, and two bf16 matrices of 128256 x 4096.
    by_hand = 6.98e9 * 0.516 + 2 * 2 * 128256 * 4096
    assert found["terms_bytes"]["weights"] == pytest.approx(by_hand, rel=0.001)
    assert found["terms_bytes"]["kv_cache"] == 2 * 2**30
    assert main([*flags, "--json"]) == 0  # in k8v4
    assert json.loads(capsys.readouterr().out)["total_bytes"] < found["total_bytes"]
    assert main([*fine, "--weights", "bf16"]) == 0
    text = capsys.readouterr().out
    assert "does not fit 12.0 GiB" in text and "kv_cache" in text and "2.00 GiB" in text


def test_the_sum_counts_the_heads_that_would_be_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["models", "show", "llama-3.1-8b", "--budget", "16384", "--memory", "12", "--json"]
    found = {}
    for scorer in ("none", "retaining", "locret"):
        assert main([*flags, "--scorer", scorer]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["scorer"] == scorer and report["fits"]
        found[scorer] = report["terms_bytes"]["heads"]
    assert main(flags) == 0
    assert json.loads(capsys.readouterr().out)["terms_bytes"]["heads"] == 0  # no heads are shipped
    # 32 layers: 6,144 numbers of [q; k; v] and eight heads' scores for each of 1,024 inner units
    assert found["none"] == 0 < found["retaining"] < found["locret"] == 4 * 32 * 1024 * (6144 + 8)
    assert main(["models", "show", "qwen2.5-coder-0.5b", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["scorer"] == "retaining" and report["terms_bytes"]["heads"] > 20e6


def test_the_sum_is_of_what_this_machine_would_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that is no nf4, and copies are packed beside the weights for answering."""
    monkeypatch.setattr("engine.device.pick_device", lambda wanted: "cpu")
    assert main(["models", "show", "smollm2-135m", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"] in ("fp32", "bf16")
    n_bytes = {"fp32": 4, "bf16": 2}[found["weights"]]
    assert found["terms_bytes"]["weights"] == pytest.approx(n_bytes * 134.5e6, rel=0.01)
    assert 0.9 * 134.5e6 < found["terms_bytes"]["answers"] < 2.1 * 134.5e6
    assert found["total_bytes"] == sum(found["terms_bytes"].values())
    assert main(["models", "show", "smollm2-135m", "--weights", "nf4", "--json"]) == 0
    small = json.loads(capsys.readouterr().out)
    assert small["weights"] == "nf4" and "answers" not in small["terms_bytes"]


@pytest.mark.parametrize("memory", ["nan", "inf", "0", "-1", "much"])
def test_a_card_has_a_size(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["models", "show", "llama-3.1-8b", f"--memory={memory}"])
    assert ended.value.code == 2
    assert memory in capsys.readouterr().err


def test_a_sum_needs_a_model_that_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show"]) == 2
    assert main(["models", "show", "no-such"]) != 0
    assert "no-such" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "tied"),
    [("qwen2.5-coder-0.5b", True), ("smollm2-135m", True), ("llama-3.1-8b", False),
     ("llama-3.2-3b", True), ("phi-3-mini-128k", False), ("qwen3-8b", False)],
)  # fmt: skip
def test_the_number_of_parameters_tells_how_many_matrices(name: str, tied: bool) -> None:
    from engine.registry import find

    spec = find(name)
    assert spec is not None and spec.tied is tied


def test_the_answer_formats_of_the_command_are_those_of_the_engine() -> None:
    from app.commands.common import ANSWER_WEIGHTS
    from engine.decoding import ANSWER_FORMATS

    assert ANSWER_WEIGHTS == ANSWER_FORMATS


@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "other"],
        ["--weights", "fp32"],
        ["--budget", "160"],
        ["--cache-mb", "5"],
        ["--allocation", "per_layer"],
        ["--scorer", "recency"],
        ["--positions", "compact"],
        ["--chunk", "64"],
        ["--read-twice"],
        ["--refit"],
        ["--kv-bits", "8"],
        ["--pages", "7-9"],
        ["--password", "secret"],
    ],
    ids=lambda flags: flags[0],
)
@pytest.mark.parametrize("anew", [[], ["--reread"]], ids=["", "reread"])
def test_a_session_is_not_asked_as_if_it_were_read_otherwise(
    flags: list[str], anew: list[str], typed_book: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, read, _ = ask(capsys, "ingest", typed_book, "--json", *TINY)
    arguments = ["ask", read["session"][:8], "-q", "Who?", "--json", "--max-new-tokens", "1"]
    code, out, err = ask(capsys, *arguments, *flags, *anew)
    assert (code, out) == (2, None), "not ignored in silence"
    assert flags[0] in err and read["session"][:8] in err and "file" in err
    if flags[0] != "--password":
        assert f"not with {' '.join(flags)}." in err, "as it was typed"
    else:
        assert "secret" not in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--scorer", "h2o"], "no scorer 'h2o'"),
        (["--budget", "5"], "A budget of 5 entries is too small"),
        (["--kv-bits", "9"], "'9'"),
    ],
)
@pytest.mark.parametrize("command", [["ingest"], ["ask", "-q", "Who?"]])
def test_what_no_model_could_do_is_refused_before_one_is_loaded(
    command: list[str],
    flags: list[str],
    said: str,
    typed_book: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded(*given: Any, **how: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("engine.loader.load_model", loaded)
    code, _, err = ask(capsys, *command, typed_book, "--model", "tiny", *flags)
    assert code == 2 and said in err


def test_a_mistyped_session_is_not_only_called_a_missing_file(
    typed_book: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, read, _ = ask(capsys, "ingest", typed_book, "--json", *TINY)
    code, _, err = ask(capsys, "ask", "deadbeef", "-q", "Who?")
    assert code == 2 and "nor one session" in err and "`sessions`" in err
    code, _, err = ask(capsys, "ask", "no such file.pdf", "-q", "Who?")
    assert code == 3 and "There is no file" in err
    code, _, err = ask(capsys, "delete", read["session"][:2])
    assert code == 2 and "too short a beginning" in err


def test_sessions_of_one_document_can_be_told_apart(
    typed_book: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (["--kv-bits", "16"], ["--kv-bits", "8"]):
        ask(capsys, "ingest", typed_book, "--json", *TINY, *flags)
    assert main(["sessions"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({line.split("  ", 1)[1] for line in lines}) == len(lines) == 2
    assert all("% kept" in line for line in lines)
    assert "--kv-bits 8" in lines[0] and "--kv-bits 16" in lines[1]


def test_a_desk_is_not_opened_for_a_model_that_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.desk.server.serve", lambda *given, **how: None)
    assert main(["ui", "--no-browser", "--model", "qwen2.5-codr"]) == 4
    assert "Did you mean" in capsys.readouterr().err
    assert main(["ui", "--no-browser", "--model", "smollm2-135m"]) == 0


def test_a_session_is_asked_with_the_flags_that_it_was_read_with(
    typed_book: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, read, _ = ask(capsys, "ingest", typed_book, "--json", *TINY)
    arguments = ["ask", read["session"], "-q", "Who?", "--json", "--max-new-tokens", "1"]
    code, answered, err = ask(capsys, *arguments, *TINY, "--pages", "1", "--kv-bits", "k8v4")
    assert code == 0 and answered["reused"] is True, err


def test_a_models_names_are_one_model() -> None:
    known = find("default")
    assert known is not None and commands_ask._known_name("default") == known.name
    assert commands_ask._known_name(known.name.upper()) == known.name
    assert commands_ask._known_name("elsewhere/model") == "elsewhere/model"
    assert commands_ask._known_name(None) is None


def test_doctor_on_a_full_disk_says_so_and_leaves_nothing(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_model(monkeypatch)

    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    _, report, _ = ask(capsys, "doctor", "--json")
    (problem,) = [found for found in report["problems"] if str(data_dir) in found["what"]]
    assert "delete" in problem["repair"] and "--data-dir" not in problem["repair"]
    assert not list(data_dir.glob(".probe*"))


def test_doctor_says_what_moves_a_folder_of_models_that_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_model(monkeypatch)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LONGREAD_MODELS", str(tmp_path / "file"))
    _, report, _ = ask(capsys, "doctor", "--json")
    (problem,) = [found for found in report["problems"] if "is a file" in found["what"]]
    assert "LONGREAD_MODELS" in problem["repair"]
