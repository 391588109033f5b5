"""`bench memory`: the peak of one reading, and how several make a report."""

from __future__ import annotations

import json
import mmap
import time
from pathlib import Path
from typing import Any

import pytest

from app.benchmarks import memory, memory_child
from app.benchmarks.errors import ChildFailed
from app.benchmarks.memory_child import PeakMeter
from app.cli import main
from tests.unit.app.test_bench import a_bench
from tests.unit.app.tiny_reader import tiny_loaded, use_tiny_model

MIB = 2**20


def held_fresh_pages(nbytes: int) -> None:
    """Hold memory of no allocator's, which might have some resident already, for 0.2 s."""
    with mmap.mmap(-1, nbytes) as block:
        for first in range(0, nbytes, mmap.PAGESIZE):
            block[first] = 1
        time.sleep(0.2)  # long enough for the sampler to look once


@pytest.mark.parametrize("record", [True, False])
def test_the_meter_sees_what_was_held_for_a_moment(
    record: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not record:
        monkeypatch.setattr(memory_child, "_reset_record", lambda: False)
    held_fresh_pages(200 * MIB)
    meter = PeakMeter("cpu")
    before = meter.held()
    with meter:
        held_fresh_pages(100 * MIB)
    assert 95 * MIB < meter.peak - before < 130 * MIB, meter.by
    assert meter.held() < before + 20 * MIB


def test_a_reading_says_its_peak_its_cache_and_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_model(monkeypatch)
    request = a_bench(tmp_path, lengths=(600,), runs=1).request
    reply = json.loads(json.dumps(memory_child.measured(request)))
    geometry = tiny_loaded().geometry
    assert reply["peak_bytes"] >= reply["loaded_bytes"] > 0
    assert reply["kept_tokens"] == 200 and reply["about"]["parity"]["ok"]
    values = 200 * geometry.n_slots * geometry.head_dim * 2 * 2
    assert reply["terms"]["kv_cache"] == values
    assert reply["cache_bytes"] == values + reply["terms"]["kv_index"]


def test_rows_are_medians_beside_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = dict.fromkeys((*memory.READING_TERMS, "weights", "overhead"), 10 * MIB)
    peaks = iter([900, 150, 170, 300, 300, 300])
    asked: list[int] = []

    def measured(bench: Any, n_tokens: int) -> dict[str, Any]:
        asked.append(n_tokens)
        return {
            "about": {"model": "tiny", "peak_by": "the test", "runs": 1},
            "loaded_bytes": 100 * MIB,
            "peak_bytes": next(peaks) * MIB,
            "cache_bytes": 25 * MIB,
            "kept_tokens": 7,
            "terms": terms,
        }

    monkeypatch.setattr(memory, "_measured", measured)
    found = memory.measure(a_bench(tmp_path, lengths=(100, 200)))
    assert asked == [100, 100, 100, 200, 200, 200] and found["runs"] == 3
    first, second = found["rows"]
    assert first["extra_bytes"] == 70 * MIB and first["cache_multiple"] == (70 - 20) / 25
    assert second["extra_mib"] == 200 and second["planned_mib"] == 60
    assert set(first["planned"]) == set(memory.READING_TERMS)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """The tiny model as a folder that another process can load."""
    from tests.fakes import stock_model, tiny_config

    model = tiny_loaded()
    folder = tmp_path / "tiny-model"
    stock = stock_model(tiny_config(vocab_size=len(model.tokenizer)))
    stock.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def test_each_reading_has_its_own_process(
    model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(model_folder), "--weights", "fp32", "--threads", "1"]
    lengths = ["--lengths", "500", "--budget", "200", "--chunk", "128", "--runs", "1"]
    code = main(["bench", "memory", *flags, *lengths, "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    found = json.loads(out)
    assert found["benchmark"] == "memory" and found["parity"]["ok"]
    assert found["threads"] == 1 and found["rows"][0]["kept_tokens"] == 200
    assert "500 of 500 tokens" in err


def test_a_refusal_of_the_child_is_the_commands(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main(["bench", "memory", "--model", str(tmp_path), "--lengths", "500", "--runs", "1"])
    out, err = capfd.readouterr()
    assert code == 4 and out == "" and "config.json" in err


def test_a_child_that_dies_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "COMMAND", (memory.COMMAND[0], "-c", "raise SystemExit(9)"))
    with pytest.raises(ChildFailed, match="exit code 9"):
        memory.measure(a_bench(tmp_path))
