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


def figures(fp32: float, bf16: float) -> dict[str, float]:
    return {"prefill_fp32": fp32, "prefill_bf16": bf16, "decode_fp32": 1.0, "decode_bf16": 1.0}


@pytest.mark.parametrize(
    ("fp32", "bf16", "name"), [(34, 6, "fp32"), (191, 860, "bf16"), (100, 95, "bf16")]
)
def test_the_faster_format_wins_and_a_draw_goes_to_the_smaller(
    fp32: float, bf16: float, name: str
) -> None:
    choice = choose(figures(fp32, bf16))
    assert choice.name == name
    assert str(fp32) in choice.reason and str(bf16) in choice.reason


def test_fp16_is_never_a_candidate() -> None:
    assert torch.float16 not in numeric.CANDIDATES.values()


def test_a_measurement_covers_both_phases() -> None:
    found = measure_formats(seconds_each=0.001)
    assert set(found) == set(figures(1, 1))
    assert all(value > 0 for value in found.values())


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

    rates = {f"{phase}_{name}": 1.0 for phase in ("prefill", "decode") for name in ("fp32", "bf16")}
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
    assert set(known) == {machine_key(), f"answers | {machine_key()}"}
