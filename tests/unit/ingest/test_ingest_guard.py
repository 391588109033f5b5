"""The worker process: limits that hold, deaths that are explained, nothing printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ingest_files import make_pdf

from ingest import (
    Document,
    DocumentTooLarge,
    EmptyDocument,
    ParseLimits,
    ParserCrashed,
    ParseTimeout,
    PasswordRequired,
    open_document,
)
from ingest.guard import run_guarded
from ingest.limits import MIB

QUICK = ParseLimits(timeout_s=3.0)  # enough for a Python to start on a busy machine


def command(code: str) -> tuple[str, ...]:
    """A stand-in for the worker: argv[1] is the result file, argv[2] the progress file."""
    return (sys.executable, "-c", code)


def test_open_document_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = make_pdf(tmp_path / "a b \u00fc.pdf", [["A page of text."], ["Another one."]])
    document = open_document(str(path))
    assert isinstance(document, Document)
    assert document.text == "A page of text.\n\nAnother one."
    assert len(document.sha256) == 64
    assert document.parser_version.startswith("3+pymupdf-")
    assert capfd.readouterr() == ("", "")


def test_the_parent_never_loads_the_parser(tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "a.pdf", [["A page of text."]])
    code = (
        "import sys, ingest; ingest.open_document(sys.argv[1]); "
        "assert not {'pymupdf', 'docx', 'torch'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_errors_of_the_worker_arrive_as_their_type(tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "p.pdf", [["x y z"]], encryption=5, user_pw="a", owner_pw="b")
    with pytest.raises(PasswordRequired):
        open_document(path)
    empty = tmp_path / "e.pdf"
    empty.touch()
    with pytest.raises(EmptyDocument):
        open_document(empty)


def test_a_hang_is_killed_and_says_where_it_was() -> None:
    code = (
        "import sys, time, pathlib; pathlib.Path(sys.argv[2]).write_text('37 352'); "
        "print('noise'); time.sleep(60)"
    )
    started = time.monotonic()
    with pytest.raises(ParseTimeout, match="part 37 of 352") as caught:
        run_guarded({}, QUICK, command(code))
    assert time.monotonic() - started < 30
    assert "1-36" in caught.value.next_step


def test_a_worker_that_goes_on_page_by_page_gets_more_time() -> None:
    code = (
        "import sys, time, pathlib\n"
        "for page in range(1, 11):\n"
        "    pathlib.Path(sys.argv[2]).write_text(f'{page} 10'); time.sleep(0.6)\n"
        'pathlib.Path(sys.argv[1]).write_text(\'{"document": "done"}\')'
    )
    assert run_guarded({}, QUICK, command(code)) == "done"


@pytest.mark.skipif(os.name != "posix", reason="processor time is limited on POSIX only")
def test_processor_time_is_limited_whatever_the_clock_says(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from ingest.worker import limit_resources; "
        "from ingest.limits import ParseLimits; limit_resources(ParseLimits(timeout_s=1.0)); "
        "pathlib.Path(sys.argv[2]).write_text('3 9')\nwhile True: pass"
    )
    with pytest.raises(ParseTimeout, match="part 3 of 9"):
        run_guarded({}, ParseLimits(timeout_s=60.0), command(code))


@pytest.mark.skipif(os.name != "posix", reason="process groups are a POSIX matter")
def test_children_of_a_hanging_worker_die_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, pathlib, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid)); time.sleep(60)"
    )
    with pytest.raises(ParseTimeout):
        run_guarded({}, ParseLimits(timeout_s=5.0), command(code))
    pid = int(note.read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            break  # dead, and only not yet reaped by init
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists()


def test_a_real_worker_is_held_to_the_time_limit(tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "a.pdf", [["A page of text."]])
    with pytest.raises(ParseTimeout):
        open_document(path, limits=ParseLimits(timeout_s=0.01))


@pytest.mark.skipif(os.name != "posix", reason="signals are a POSIX matter")
def test_a_crash_is_explained_with_its_signal() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    with pytest.raises(ParserCrashed, match="SIGSEGV"):
        run_guarded({}, ParseLimits(timeout_s=20), command(code))


def test_last_words_are_kept() -> None:
    with pytest.raises(ParserCrashed, match=r"exit code 3.*goodbye world"):
        code = "import sys; print('goodbye world', file=sys.stderr); sys.exit(3)"
        run_guarded({}, ParseLimits(timeout_s=20), command(code))


def test_a_worker_that_writes_nothing_has_crashed() -> None:
    with pytest.raises(ParserCrashed, match="exit code 0"):
        run_guarded({}, ParseLimits(timeout_s=20), command("pass"))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is held on Linux only")
def test_the_memory_limit_holds_for_text_and_for_mupdf(tmp_path: Path) -> None:
    text = tmp_path / "big.txt"
    text.write_bytes(b"some words and more\n" * (4 * MIB))
    with pytest.raises(DocumentTooLarge, match="memory"):
        open_document(text, limits=ParseLimits(memory_bytes=150 * MIB))
    pdf = make_pdf(tmp_path / "a.pdf", [["A page of text."]])
    with pytest.raises((DocumentTooLarge, ParserCrashed)):
        open_document(pdf, limits=ParseLimits(memory_bytes=64 * MIB))


def test_the_password_is_not_on_the_command_line() -> None:
    code = (
        "import sys, json, pathlib; request = json.load(sys.stdin); "
        "assert 'hush' not in ' '.join(sys.argv); "
        "pathlib.Path(sys.argv[1]).write_text(json.dumps({'document': request['password']}))"
    )
    answer = run_guarded({"password": "hush"}, ParseLimits(timeout_s=20), command(code))
    assert answer == "hush"


def test_temporary_files_are_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answer = json.dumps({"document": "x"})
    code = f"import sys, pathlib; pathlib.Path(sys.argv[1]).write_text({answer!r})"
    run_guarded({}, ParseLimits(timeout_s=20), command(code))
    with pytest.raises(ParseTimeout):
        run_guarded({}, QUICK, command("import time; time.sleep(30)"))
    assert not list(tmp_path.iterdir())
