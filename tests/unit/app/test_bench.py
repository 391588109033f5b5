"""The command `bench` on a tiny model: reports, medians, the parity gate, plots, refusals."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import kernels
from app.benchmarks import ceilings, decode, ingest, parity, synthetic
from app.benchmarks.bench import Bench, Request
from app.benchmarks.flops import reading_flops
from app.cli import main
from app.progress import ProgressLine
from engine.errors import InvalidSetting
from engine.geometry import ModelGeometry
from engine.lean import LeanDecoder
from engine.quantisation import QuantConfig
from tests.unit.app.tiny_reader import tiny_loaded, use_tiny_model

FLAGS = ["--model", "tiny", "--runs", "3", "--chunk", "128", "--budget", "200"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model, and ceilings that take no time."""
    use_tiny_model(monkeypatch)
    monkeypatch.setattr(ceilings, "SECONDS_EACH", 0.0)
    monkeypatch.setattr(ceilings, "BANDWIDTH_BYTES", 1 << 16)


def benched(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["bench", *arguments, *FLAGS])
    out, err = capsys.readouterr()
    return code, out, err


def a_bench(tmp_path: Path, **changes: Any) -> Bench:
    values: dict[str, Any] = {
        "model": "tiny",
        "data_dir": str(tmp_path),
        "models_dir": str(tmp_path),
        "lengths": (300, 600),
        "budget_tokens": 200,
        "chunk_tokens": 128,
        "runs": 3,
    }
    return Bench(Request(**{**values, **changes}), ProgressLine(quiet=True))


class TickingClock:
    """A clock that moves by itself, a given step a look."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self, device: str = "cpu") -> float:
        self.now += self.step
        return self.now


def test_figures_are_printed_before_they_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("app.commands.bench._draw", full)
    plot = str(tmp_path / "x.svg")
    code, out, _ = benched(capsys, "restore", "--lengths", "300", "--json", "--plot", plot)
    assert code == 5 and json.loads(out)["rows"]


def test_ingest_reports_lengths_windows_and_shares(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "WINDOW_TOKENS", 256)
    code, out, err = benched(capsys, "ingest", "--lengths", "1024,512", "--json", "--threads", "1")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    assert found["model"] == "tiny" and found["threads"] == 1 and found["parity"]["ok"]
    assert found["compute_format"] == "float32" and found["peak_gflops"] > 0
    assert [row["tokens"] for row in found["rows"]] == [512, 1024]
    assert [w["start"] for w in found["windows"]] == [0, 256, 512, 768]
    for row in [*found["rows"], *found["windows"]]:
        assert row["tok_s"] == pytest.approx(row["tokens"] / row["seconds"], rel=1e-3)
        assert row["peak_share"] == pytest.approx(row["gflops"] / found["peak_gflops"], rel=1e-3)
    first, second, *_, last = (w["tok_s"] for w in found["windows"])
    assert found["last_over_second"] == pytest.approx(last / second, rel=1e-3)
    assert first and 0 < found["scorer_share"] < 1 and 0 < found["evict_share"] < 1
    assert found["scorer"] == "keydiff" and found["kept_tokens"] == 200
    assert "1024 of 1024 tokens" in err


def test_the_report_says_nothing_of_windows_that_were_not_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = benched(capsys, "ingest", "--lengths", "256", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["windows"] == [] and found["last_over_second"] is None


def test_figures_are_medians_of_the_runs(tmp_path: Path) -> None:
    """Three readings of 100, 1 and 3 seconds, of which the scorer took a half, none and a tenth."""
    bench = a_bench(tmp_path, lengths=(100, 200), chunk_tokens=100)
    model = bench.model
    cache = synthetic.session_cache(model, 200, 200)
    readings = [
        ingest.Reading([(0, 0.0), (100, t / 4), (200, t)], score_s=s * t, cache=cache)
        for t, s in ((100.0, 0.5), (1.0, 0.0), (3.0, 0.1))
    ]
    found = ingest.report(bench, readings, [1e9, 5e9, 2e9], 200)
    assert [row["seconds"] for row in found["rows"]] == [0.75, 3.0]
    assert found["peak_gflops"] == 2.0 and found["peak_gflops_range"] == [1.0, 5.0]
    assert found["scorer_share"] == 0.1
    flops = reading_flops(model.geometry, 200, 100, 200)
    assert found["rows"][1]["gflops"] == pytest.approx(flops / 3 / 1e9, rel=1e-3)


def test_time_inside_a_chunk_goes_by_its_mean_speed() -> None:
    reading = ingest.Reading([(0, 0.0), (100, 1.0), (200, 5.0)])
    assert [reading.time_at(n) for n in (0, 50, 100, 150, 200)] == [0, 0.5, 1, 3, 5]


def test_clocks_see_scorer_and_eviction_and_go_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.prefill import ChunkStore

    before = ChunkStore.evict
    monkeypatch.setattr(ingest, "clock", TickingClock(1.0))
    bench = a_bench(tmp_path)
    reading = ingest.read(bench, bench.ids(300))
    n_layers, n_chunks = bench.model.geometry.n_layers, 3
    # score and rescore in every layer and chunk; one eviction a chunk; a tick each
    assert reading.score_s == 2 * n_layers * n_chunks and reading.evict_s == n_chunks
    assert [n for n, _ in reading.marks] == [0, 128, 256, 300]
    assert ChunkStore.evict is before


def test_ceilings_are_work_over_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call takes half a second on this clock."""
    monkeypatch.setattr(ceilings, "clock", TickingClock(0.5))
    geometry = ModelGeometry(2, 4, 2, 8, 16, 64, intermediate_size=24)
    assert ceilings.gemm_flops_per_s(geometry, 32, torch.float32) == 2 * 32 * 16 * 24 / 0.5
    assert ceilings.read_bytes_per_s() == (1 << 16) / 0.5


def test_flops_of_a_reading_counted_by_hand() -> None:
    geometry = ModelGeometry(2, 4, 2, 8, 16, 64, intermediate_size=24)
    linear = 2 * ((2 * 4 + 2 * 2) * 8 * 16 + 3 * 16 * 24)
    visible = 0
    for token in range(10):
        chunk = token // 4 * 4
        visible += min(chunk, 6) + token - chunk + 1
    attention = 4 * 8 * 4 * 2 * visible
    assert reading_flops(geometry, 10, 4, 6) == 2 * linear * 10 + attention


def test_decode_reports_sizes_beside_their_ceiling(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = benched(capsys, "decode", "--lengths", "100,9000", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["entries"] for row in found["rows"]] == [100, 200]
    assert [row["entries"] for row in found["left_out"]] == [9000]
    assert "4096" in found["left_out"][0]["reason"]
    for row in found["rows"]:
        assert row["ttft_s"] > 0 and row["tok_s"] > 0 and row["positions"] == "shared"
        assert row["largest_head"] == 1.5 * row["entries"]
        share = row["tok_s"] / row["ceiling_tok_s"]
        assert row["ceiling_share"] == pytest.approx(share, rel=1e-3)
        per_token = found["weights_bytes"] + row["cache_bytes"]
        ceiling = row["bandwidth_gb_s"] * 1e9 / per_token
        assert row["ceiling_tok_s"] == pytest.approx(ceiling, rel=1e-3)


def test_bytes_of_a_token_are_weights_once_and_entries_once() -> None:
    model = tiny_loaded()
    parameters = sum(p.nbytes for p in model.model.parameters())
    embedding = model.model.get_input_embeddings().weight.nbytes

    class Held:
        def __init__(self, nbytes: int) -> None:
            self.model = model
            self.decoder = SimpleNamespace(decoder=SimpleNamespace(nbytes=nbytes))

    assert decode.weights_read(Held(0)) == parameters - embedding  # type: ignore[arg-type]
    assert decode.weights_read(Held(77)) == 77  # type: ignore[arg-type]
    geometry = model.geometry
    cache = synthetic.session_cache(model, 1000, 100)  # type: ignore[arg-type]
    assert decode.entries_bytes(cache) == 100 * geometry.n_slots * geometry.head_dim * 2 * 2


def test_answers_have_the_length_asked_for(tmp_path: Path) -> None:
    bench = a_bench(tmp_path)
    cache = synthetic.session_cache(bench.model, 1000, 100)
    model, every = bench.model, frozenset(range(1000))
    bench.__dict__["model"] = replace(model, stop_token_ids=every)
    assert len(decode.answer(bench, cache, 7).token_ids) == 7


@pytest.mark.parametrize("bits", [QuantConfig(), QuantConfig(8, 4)])
def test_a_synthetic_session_is_a_valid_ragged_cache(bits: QuantConfig) -> None:
    cache = synthetic.session_cache(tiny_loaded(), 5000, 300, quant=bits)  # type: ignore[arg-type]
    cache.check()
    assert cache.frozen and cache.n_seen == 5000 and cache.kept_tokens == 300
    assert len({n for layer in cache.layers for n in layer.lengths}) > 2
    assert cache.quant == bits


def test_a_synthetic_session_keeps_room_in_the_window() -> None:
    model = tiny_loaded()
    with pytest.raises(InvalidSetting, match="window of 4096"):
        synthetic.session_cache(model, 9000, 4000, room_tokens=97)  # type: ignore[arg-type]
    cache = synthetic.session_cache(model, 9000, 4000, room_tokens=96)  # type: ignore[arg-type]
    assert max(max(layer.lengths) for layer in cache.layers) == 4000


def test_restore_reports_loads_beside_a_plain_read(
    capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    code, out, err = benched(capsys, "restore", "--lengths", "150,5000", "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [(row["tokens"], row["kept"]) for row in rows] == [(150, 150), (5000, 200)]
    for row in rows:
        assert row["bytes"] > row["cache_bytes"] and row["save_s"] > 0 and row["ceiling_s"] > 0
        assert row["over_ceiling"] == pytest.approx(row["load_s"] / row["ceiling_s"], rel=1e-3)
    assert not list(data_dir.glob("bench-*")), "its folder stays behind"


def test_fewer_bits_make_smaller_snapshots(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for bits in ("16", "k8v4"):
        flags = ["--lengths", "5000", "--json", "--kv-bits", bits, "--budget", "1000"]
        assert (code := main(["bench", "restore", *FLAGS, *flags])) == 0, code
        found = json.loads(capsys.readouterr().out)
        assert found["kv_bits"] == bits
        sizes.append(found["rows"][0]["cache_bytes"])
    assert sizes[1] < 0.7 * sizes[0]


BREAKS = {
    "a kernel": "kernels.cpu.attend",
    "a kernel over the chunk": "kernels.cpu.attend_causal",
    "a kernel over turned entries": "kernels.cpu.attend_turned",
    "a token's kernel over turned entries": "kernels.cpu.mix_turned",
}


@pytest.mark.parametrize("name", BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_red_parity_prints_no_figure(
    name: str, more: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(kernels.cpu, name.rpartition(".")[2])

    def wrong(*arguments: Any) -> Any:
        found = right(*arguments)
        return (1.01 * found[0], found[1]) if isinstance(found, tuple) else 1.01 * found

    monkeypatch.setattr(name, wrong)
    code, out, err = benched(capsys, "ingest", "--lengths", "256", *more)
    assert code == 1 and out == "" and "Parity is red: kernels" in err


def a_little_more(x: torch.Tensor) -> torch.Tensor:
    return 1.01 * x if x.is_floating_point() else ~x


@pytest.mark.parametrize("name", ["from_codes", "keep_mask", "retaining_scores"])
@pytest.mark.parametrize("benchmark", ["restore", "decode"])
def test_what_stores_chooses_and_scores_is_looked_at_too(
    benchmark: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(kernels, name)
    monkeypatch.setattr(kernels, name, lambda *given: a_little_more(right(*given)))
    code, out, err = benched(capsys, benchmark, "--lengths", "256")
    assert code == 1 and out == "" and "Parity is red: stored" in err


@pytest.mark.parametrize("format", ["same", "int8"])
def test_what_answers_is_looked_at_before_it_is_timed(
    format: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["decode", "--lengths", "256", "--answer-weights", format]
    code, out, err = benched(capsys, *given, "--json")
    assert code == 0, err
    found = json.loads(out)["parity"]
    assert found["answers"] <= found["answers_tolerance"]
    right = LeanDecoder.forward
    monkeypatch.setattr(LeanDecoder, "forward", lambda *given: 0.5 * right(*given))
    code, out, err = benched(capsys, *given)
    assert code == 1 and out == "" and "Parity is red: answers" in err


def test_attention_over_codes_is_held_against_the_plain_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = tiny_loaded()
    assert parity._coded(model) < 1e-5
    right = kernels.cpu.attend_turned
    monkeypatch.setattr(
        "kernels.cpu.attend_turned", lambda *given: (1.1 * right(*given)[0], right(*given)[1])
    )
    assert parity._coded(model) > 1e-3


@pytest.mark.parametrize("part", ["chunked", "view"])
def test_a_model_that_reads_chunks_otherwise_is_red(
    part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right kernels, wrong positions: only the comparison of logits can see that."""
    from engine.stretches import Stretches
    from engine.view import CacheView

    if part == "view":
        attend = CacheView.attend
        monkeypatch.setattr(
            CacheView,
            "attend",
            lambda self, n, q, k, v, scale: attend(self, n, q.flip(0), k, v, scale),
        )
    else:
        join = Stretches.join
        monkeypatch.setattr(
            Stretches,
            "join",
            lambda self, q, out, lse, scale: join(self, q.flip(0), out, lse, scale),
        )
    code, out, err = benched(capsys, "decode", "--lengths", "100", "--json")
    assert code == 1 and out == "" and f"Parity is red: {part}" in err


@pytest.mark.parametrize("name", ["attend", "attend_causal"])
def test_what_only_long_queries_come_to_is_looked_at_too(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(kernels.cpu, name)

    def wrong(q: torch.Tensor, *more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = right(q, *more)
        return out * (0 if q.shape[1] >= kernels.cpu.LONG else 1), lse

    monkeypatch.setattr(f"kernels.cpu.{name}", wrong)
    code, out, err = benched(capsys, "ingest", "--lengths", "256")
    assert code == 1 and out == "" and "red: kernels" in err


def test_results_that_are_no_numbers_are_red(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = kernels.cpu.attend_causal

    def wrong(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = right(*arguments)
        return out * float("nan"), lse

    monkeypatch.setattr("kernels.cpu.attend_causal", wrong)
    code, out, err = benched(capsys, "ingest", "--lengths", "256")
    assert code == 1 and out == "" and "red: kernels" in err


def test_a_table_then_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = benched(capsys, "restore", "--lengths", "150,300")
    about, heading, *rows, _, last = out.splitlines()
    assert code == 0 and "median of 3" in about and heading.split()[:2] == ["tokens", "kept"]
    assert [row.split()[:2] for row in rows] == [["150", "150"], ["300", "200"]]
    assert json.loads(last)["benchmark"] == "restore"


@pytest.mark.parametrize("name", ["ingest", "decode", "restore"])
def test_a_plot_has_a_line_for_each_series(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plot.svg"
    code, _, err = benched(capsys, name, "--lengths", "128,256", "--plot", str(path))
    assert code == 0 and str(path) in err
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    n_lines = len(list(root.iter("{http://www.w3.org/2000/svg}polyline")))
    assert n_lines == {"ingest": 1, "decode": 2, "restore": 3}[name]


def test_the_text_is_always_the_same_and_long_enough(tmp_path: Path) -> None:
    ids = a_bench(tmp_path).ids(40_000)
    assert len(ids) == 40_000 and ids == a_bench(tmp_path).ids(40_000)
    assert a_bench(tmp_path).ids(100) == ids[:100]


def test_a_text_of_ones_own_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "book.txt"
    path.write_text("a long way " * 60, encoding="utf-8")
    bench = a_bench(tmp_path, text=str(path))
    assert bench.model.tokenizer.decode(bench.ids(22)) == "a long way a long way "
    code, out, err = benched(capsys, "ingest", "--text", str(path), "--lengths", "1000")
    assert code == 2 and out == "" and "660 tokens" in err
    code, out, err = benched(capsys, "ingest", "--text", str(tmp_path / "none"), "--lengths", "99")
    assert code == 2 and out == "" and "--text" in err


def test_threads_reach_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert benched(capsys, "restore", "--lengths", "100", "--threads", "2")[0] == 0
    assert torch.get_num_threads() == 2


def test_ctrl_c_ends_with_130_and_no_figure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **how: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.benchmarks.ingest.read", interrupted)
    code, out, _ = benched(capsys, "ingest", "--lengths", "256", "--json")
    assert code == 130 and out == ""


@pytest.mark.parametrize("wrong", ["0", "x", "", "12,,3"])
def test_lengths_are_whole_numbers(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "ingest", "--lengths", wrong])
    assert ended.value.code == 2 and capsys.readouterr().out == ""


@pytest.mark.parametrize("wrong", [False, True])
def test_reading_from_packed_weights_is_held_against_the_models_own(
    wrong: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = replace(tiny_loaded(), reads_packed=True)
    monkeypatch.setattr("engine.loader.load_model", lambda name, **how: model)
    # Whatever this torch build can pack: what is looked at is the comparison.
    made = LeanDecoder(model, "int8" if wrong else "same")
    if wrong:
        monkeypatch.setattr(made, "_norm", replace(made._norm, weight=2 * made._norm.weight))
    monkeypatch.setattr("engine.packing._made", {model.model: {"fp16": made}})
    code, out, err = benched(capsys, "ingest", "--lengths", "300", "--json")
    if wrong:
        assert code == 1 and out == "" and "Parity is red: packed" in err
    else:
        report = json.loads(out)
        assert report["reading_format"] == "float32 from weights in fp16"
        assert report["reading_format"] in report["peak_of"]
