"""`bench peers` against a made-up rival, and the rival's own script on a made-up library."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from app.benchmarks import peers
from app.benchmarks.children import Child
from app.benchmarks.curve import Curve, fitted
from app.benchmarks.errors import ChildFailed
from app.benchmarks.peers import Taken
from app.cli import main
from tests.unit.app.test_bench import a_bench
from tests.unit.app.tiny_reader import tiny_loaded, use_tiny_model

# Reads n tokens in n / 100 + n^2 / 1000 seconds, decodes at 4 tokens a second, saves 10 KB a token.
# The second line is a command to sh, which takes a Python whose path has a space, and to Python a
# string.
FAKE = """\
#!/bin/sh
"exec" "{python}" "$0" "$@"
import json, os, signal, sys
seconds = lambda n: n / 100 + n * n / 1000
n_read = 0
for line in sys.stdin:
    request = json.loads(line)
    do = request.pop("do")
    if do == "hello":
        reply = {hello}
    elif do == "open":
        assert request["threads"] == 1, request
        n_ctx = request["n_ctx"]
        slow = 1 if request["n_batch"] == 2048 else 2
        reply = {{"n_vocab": 100000}}
    elif do == "tokens":
        reply = {{"ids": [{table}[byte] for byte in request["text"].encode()][:{cut}]}}
    elif do == "read":
        n_read = request["start"]
        print(json.dumps({{"progress": [1, 2]}}))
        marks = []
        for first in range(0, len(request["ids"]), 50):
            done = n_read + min(first + 50, len(request["ids"]))
            marks.append([done, slow * (seconds(done) - seconds(n_read))])
        n_read = done
        assert n_read + 32 < n_ctx, "no room to decode"
        reply = {{"marks": marks}}
    elif do == "decode":
        n_read += request["n"]
        reply = {{"seconds": request["n"] / 4}}
    else:
        reply = {{"bytes": 10_000 * n_read}}
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    use_tiny_model(monkeypatch)
    monkeypatch.delenv(peers.PYTHON_ENV, raising=False)
    model = tmp_path / "tiny.gguf"
    model.write_bytes(b"GGUF")
    return ["--model", str(model), "--chunk", "64", "--budget", "100", "--runs", "1"]


def fake_rival(tmp_path: Path, *, hello: str = '{"version": "9"}', cut: str = "") -> str:
    if sys.platform == "win32":
        pytest.skip("the rival of this test is a script with a first line that names its Python")
    path = tmp_path / "rival-python"
    table = [tiny_loaded().tokenizer(chr(byte))["input_ids"][0] for byte in range(128)]
    text = FAKE.format(python=sys.executable, hello=hello, cut=cut, table=table)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def compared(
    capsys: pytest.CaptureFixture[str], flags: list[str], *arguments: str
) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["bench", "peers", *flags, "--threads", "1", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_both_sides_stand_beside_each_other(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rival = fake_rival(tmp_path)
    arguments = ["--rival-python", rival, "--lengths", "100,200", "--json", "--runs", "2"]
    code, out, err = compared(capsys, flags, *arguments)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    assert found["rival"]["version"] == "9" and found["rival"]["same_tokens"]
    assert found["rival"]["n_batch"] == 2048, "the fastest of the trials reads"
    assert len(found["rival"]["trials"]) == 3 and found["threads"] == 1
    assert [row["tokens"] for row in found["rows"]] == [100, 200]
    for row in found["rows"]:
        n = row["tokens"]
        assert row["rival_read_s"] == pytest.approx(n / 100 + n * n / 1000)
        assert row["rival_decode_tok_s"] == 4 and row["rival_state_bytes"] == 10_000 * n
        assert row["read_ratio"] == pytest.approx(row["rival_read_s"] / row["read_s"], rel=1e-3)
        assert row["decode_ratio"] == pytest.approx(row["decode_tok_s"] / 4, rel=1e-3)
        expected = 10_000 * n / row["snapshot_bytes"]
        assert row["snapshot_ratio"] == pytest.approx(expected, rel=1e-3)
        assert not row["rival_extrapolated"]
    assert found["snapshot_tokens"] == 200
    assert found["snapshot_ratio"] == found["rows"][1]["snapshot_ratio"]
    named = ("read_16k_ratio", "read_32k_ratio", "decode_4k_ratio", "decode_32k_ratio")
    assert all(found[name] is None for name in named), "not measured at these lengths"
    far = found["rival_128k"]
    assert far["extrapolated"] and "not measured" in far["how"] and "200 tokens" in far["how"]
    assert far["seconds"] == pytest.approx(131_072 / 100 + 131_072**2 / 1000, rel=1e-3)


def test_beyond_its_longest_the_rival_is_extrapolated_and_labelled(
    tmp_path: Path,
    flags: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "RIVAL_LONGEST", 150)
    rival = fake_rival(tmp_path)
    code, out, err = compared(
        capsys, flags, "--rival-python", rival, "--lengths", "100,300", "--json"
    )
    assert code == 0, err
    near, beyond = json.loads(out)["rows"]
    assert not near["rival_extrapolated"] and beyond["rival_extrapolated"]
    assert beyond["rival_read_s"] == pytest.approx(300 / 100 + 300**2 / 1000, rel=1e-3)
    assert beyond["decode_ratio"] is None and beyond["snapshot_ratio"] is None
    assert "extrapolated" in compared(capsys, flags, "--rival-python", rival, "--lengths", "100")[1]


def test_named_ratios_are_those_of_their_lengths(tmp_path: Path) -> None:
    lengths = (4096, 16_384, 32_768, 131_072)
    bench = a_bench(tmp_path, lengths=lengths)
    ours = [{n: Taken(n / s, 8.0, 100) for n in lengths} for s in (1000, 10, 500)]
    theirs = [{n: Taken(n / 100, 32.0, 10 * n) for n in lengths[:3]}] * 3
    points = [(n, n / 100) for n in lengths[:3]]
    found = peers.report(bench, ours, theirs, points)
    assert found["read_16k_ratio"] == found["read_32k_ratio"] == 5, "of the median run"
    assert found["read_128k_ratio"] == pytest.approx(5) and found["rows"][3]["rival_extrapolated"]
    assert found["decode_4k_ratio"] == found["decode_32k_ratio"] == 4
    assert found["snapshot_tokens"] == 32_768 and found["snapshot_ratio"] == 3276.8


def test_other_tokens_are_said_to_be_others(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rival = fake_rival(tmp_path, cut="30")
    code, out, err = compared(capsys, flags, "--rival-python", rival, "--lengths", "100")
    assert code == 0, err
    assert "per own token" in out
    assert not json.loads(out.splitlines()[-1])["rival"]["same_tokens"]


def test_without_a_rival_it_says_how_to_make_one(
    flags: list[str], capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    code, out, err = compared(capsys, flags, "--lengths", "100", "--json")
    assert code == 2 and out == ""
    assert str(data_dir / "rivals" / "llama-cpp") in err and "-m venv" in err
    assert "pip install llama-cpp-python" in err and "--rival-python" in err


def test_a_python_without_the_library_is_no_rival(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    hello = '{"error": "llama-cpp-python cannot be imported.", "exit_code": 2}'
    rival = fake_rival(tmp_path, hello=hello)
    code, out, err = compared(capsys, flags, "--rival-python", rival, "--lengths", "100")
    assert code == 2 and out == "" and f"{rival} -m pip install llama-cpp-python" in err


def test_the_environment_names_a_rival_too(
    tmp_path: Path,
    flags: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(peers.PYTHON_ENV, fake_rival(tmp_path))
    assert compared(capsys, flags, "--lengths", "100", "--json")[0] == 0


@pytest.mark.parametrize(
    ("hello", "said"),
    [
        ("sys.exit(3)", "exit code 3"),
        ("0", "no reply"),
        ('{"error": "x"}', "x"),
        ("os.kill(os.getpid(), signal.SIGILL)", "instruction"),
    ],
)
def test_a_rival_that_fails_is_our_fault_and_no_figure(
    hello: str, said: str, tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rival = fake_rival(tmp_path, hello=hello)
    code, out, err = compared(capsys, flags, "--rival-python", rival, "--lengths", "100")
    assert code == 1 and out == "" and said in err


def test_a_model_that_is_no_gguf_file_has_no_rival(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rival = fake_rival(tmp_path)
    code, out, err = compared(
        capsys, [*flags, "--model", "owner/name"], "--rival-python", rival, "--lengths", "100"
    )
    assert code == 2 and out == "" and "no GGUF file" in err


def test_red_parity_stops_the_comparison(
    tmp_path: Path,
    flags: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.benchmarks.parity.TOLERANCE_FP32", -1.0)
    rival = fake_rival(tmp_path)
    code, out, err = compared(capsys, flags, "--rival-python", rival, "--lengths", "100")
    assert code == 1 and out == "" and "Parity is red" in err


def test_the_curve_goes_through_what_was_measured() -> None:
    found = fitted([(n, 2e-3 * n + 3e-7 * n**2) for n in (512, 1024, 4096, 32_768)])
    assert found is not None
    assert found.linear == pytest.approx(2e-3, rel=1e-3)
    assert found.seconds(131_072) == pytest.approx(2e-3 * 131_072 + 3e-7 * 131_072**2, rel=1e-3)


def test_the_curve_of_too_little_is_none_and_never_bends_down() -> None:
    assert fitted([]) is None and fitted([(512, 1.0), (512, 1.1)]) is None
    assert fitted([(1, 1.0), (2, 2.0), (3, 2.5)]) == Curve(pytest.approx(12.5 / 14), 0.0)
    convex = fitted([(1, 0.1), (2, 8.0), (3, 30.0)])
    assert convex is not None and convex.linear == 0.0 and convex.quadratic > 0


LIBRARY = """\
import os
__version__ = "0.0"
print("noise of the library")
class Llama:
    def __init__(self, **how):
        self.how, self.n_batch, self.n_tokens, self.ctx = how, how["n_batch"], 0, self
        self.seen, self.open = [], True
    def n_vocab(self): return 50
    def close(self): self.open = False
    def tokenize(self, text, add_bos, special):
        assert not add_bos and not special
        return list(text)
    def eval(self, ids):
        assert len(ids) <= self.n_batch
        os.write(1, b"noise of the C code\\n")
        if 49 in ids: raise RuntimeError("llama_decode returned -1")
        self.seen = self.seen[:self.n_tokens] + list(ids)
        self.n_tokens = len(self.seen)
    def sample(self, temp):
        assert temp == 0.0
        return 7
def llama_state_seq_get_size(ctx, sequence):
    return 1000 * ctx.n_tokens + len(ctx.seen)
"""


@pytest.fixture
def stand(tmp_path: Path) -> dict[str, str]:
    """An environment whose Python finds a llama_cpp of the test's own."""
    (tmp_path / "llama_cpp.py").write_text(textwrap.dedent(LIBRARY), encoding="utf-8")
    return {"PYTHONPATH": str(tmp_path), "PATH": ""}


COMMAND = (sys.executable, str(peers.RIVAL_SCRIPT))
OPEN = {"path": "m.gguf", "n_ctx": 99, "threads": 2, "flash_attn": True, "n_batch": 4}


def test_the_rival_reads_decodes_and_forgets_what_it_decoded(stand: dict[str, str]) -> None:
    seen: list[tuple[int, int]] = []
    with Child("The rival", COMMAND, stand, lambda *done: seen.append(done)) as rival:
        assert rival.ask(do="hello") == {"version": "0.0"}
        assert rival.ask(do="open", **OPEN) == {"n_vocab": 50}
        assert rival.ask(do="tokens", text="ab") == {"ids": [97, 98]}
        marks = rival.ask(do="read", ids=list(range(10)), start=0)["marks"]
        assert [n for n, _ in marks] == [4, 8, 10] and seen == [(4, 10), (8, 10), (10, 10)]
        assert [t for _, t in marks] == sorted(t for _, t in marks)
        assert rival.ask(do="decode", n=3)["seconds"] > 0
        more = rival.ask(do="read", ids=[1, 2, 3], start=10)["marks"]
        assert [n for n, _ in more] == [13]
        assert rival.ask(do="state") == {"bytes": 13_013}, "nothing decoded is left in it"


def test_an_error_of_the_library_is_a_reply(stand: dict[str, str]) -> None:
    with Child("The rival", COMMAND, stand) as rival:
        rival.ask(do="open", **OPEN)
        with pytest.raises(ChildFailed, match="llama_decode returned -1"):
            rival.ask(do="read", ids=[49], start=0)


def test_a_missing_library_is_a_reply_of_its_own() -> None:
    bare = (COMMAND[0], "-I", "-S", COMMAND[1])
    with (
        Child("The rival", bare, {"PATH": ""}) as rival,
        pytest.raises(ChildFailed, match="llama_cpp") as failed,
    ):
        rival.ask(do="hello")
    assert failed.value.exit_code == 2
