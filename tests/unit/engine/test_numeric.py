"""The number format is measured, decided and remembered."""

from __future__ import annotations

import errno
import json
import threading
import time
from pathlib import Path

import pytest
import torch

from engine import files, numeric
from engine.numeric import (
    choose,
    machine_key,
    measure_formats,
    pick_answer_format,
    pick_format,
)
from kernels.linear import pack


def figures(fp32: float, bf16: float, fp16: float = 0.0) -> dict[str, float]:
    prefill = {"prefill_fp32": fp32, "prefill_bf16": bf16, "prefill_fp16": fp16}
    return {**prefill, "decode_fp32": 1.0, "decode_bf16": 1.0}


@pytest.mark.parametrize(
    ("fp32", "bf16", "name"), [(34, 6, "fp32"), (191, 860, "bf16"), (100, 95, "bf16")]
)
def test_the_faster_format_wins_and_a_draw_goes_to_the_smaller(
    fp32: float, bf16: float, name: str
) -> None:
    choice = choose(figures(fp32, bf16))
    assert choice.name == name
    assert str(fp32) in choice.reason and str(bf16) in choice.reason


@pytest.mark.parametrize(
    ("fp16", "bf16", "name", "packed"),
    [(135, 17, "fp32", True), (100, 17, "fp32", False), (135, 400, "bf16", False),
     (135, 95, "fp32", True)],
)  # fmt: skip
def test_documents_are_read_from_packed_weights_where_those_are_clearly_faster(
    fp16: float, bf16: float, name: str, packed: bool
) -> None:
    choice = choose(figures(99, bf16, fp16))
    assert (choice.name, choice.packed) == (name, packed)
    assert ("135 from weights packed in fp16" in choice.reason) == (fp16 == 135)


def test_a_measurement_of_before_there_were_packed_weights_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "format.json"
    old = {"name": "fp32", "gflops": {"prefill_fp32": 99.0}, "reason": "fp32 reads faster here."}
    file.write_text(json.dumps({machine_key(): old}))
    monkeypatch.setattr(numeric, "measure_formats", lambda: figures(99, 17, 135))
    assert pick_format(file).packed and pick_format(file) == pick_format(file)


def test_where_torch_has_no_such_product_none_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numeric, "pack", lambda weight, wanted: pack(weight, "plain"))
    assert measure_formats(seconds_each=0.001)["prefill_fp16"] == 0


def test_nothing_is_computed_in_fp16() -> None:
    assert torch.float16 not in numeric.CANDIDATES.values()


def test_a_measurement_covers_both_phases() -> None:
    found = measure_formats(seconds_each=0.001)
    assert set(found) == set(figures(1, 1))
    assert all(value > 0 for name, value in found.items() if name != "prefill_fp16")


def test_a_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def measured() -> dict[str, float]:
        calls.append(1)
        return figures(10, 50)

    monkeypatch.setattr(numeric, "measure_formats", measured)
    file = tmp_path / "new" / "format.json"
    first = pick_format(file)
    assert pick_format(file) == first and first.name == "bf16" and len(calls) == 1
    assert list(json.loads(file.read_text())) == [machine_key()]

    monkeypatch.setattr(torch, "get_num_threads", lambda: 63)
    pick_format(file)
    assert len(calls) == 2, "another thread count is another machine"
    assert len(json.loads(file.read_text())) == 2

    file.write_text("{broken")
    assert pick_format(file) == first
    pick_format(None)
    assert len(calls) == 4


def test_a_measurement_that_cannot_be_kept_is_still_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*given: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(numeric, "measure_formats", lambda: figures(10, 50))
    monkeypatch.setattr(files, "fsync", forbidden)
    assert pick_format(tmp_path / "format.json").name == "bf16"
    assert list(tmp_path.iterdir()) == []


def test_two_measurements_wait_for_each_other_and_both_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "number-format.json"
    running, most = [0], [0]

    def measured(found: object) -> object:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        running[0] -= 1
        return found

    rates = figures(1, 1)
    monkeypatch.setattr(numeric, "measure_formats", lambda: measured(rates))
    monkeypatch.setattr(numeric, "seconds_per_call", lambda format: measured(0.001))
    picks = (pick_format, pick_answer_format)
    threads = [threading.Thread(target=pick, args=(cache,)) for pick in picks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    known = json.loads(cache.read_text(encoding="utf-8"))
    assert set(known) == {machine_key(), f"answers 2 | {machine_key()}"}
