"""Tensors on disk: whole or not at all, and a disk that fills up is told as such."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open

from engine.errors import NotEnoughDisk
from engine.scorers.expected_attention import QueryStatistics
from heads import calibration
from heads.answer_fit import AnswerFitSettings, fit_through_answers
from heads.lessons import Lesson
from heads.recordings import Recording, save_recording
from heads.retaining import RetainingHead
from heads.tensor_file import write_tensors
from tests.fakes import tiny_model, tokens

FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
RECORDING = Recording(torch.zeros(2, 40, 48, dtype=torch.float16), {}, 3)


def failing(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    """Let a write stop half way."""

    def fail(tensors: Any, path: Path, metadata: Any = None) -> None:
        path.write_bytes(b"half")
        raise problem

    monkeypatch.setattr("safetensors.torch.save_file", fail)


def a_recording(path: Path) -> None:
    save_recording(path, RECORDING)


def query_statistics(path: Path) -> None:
    calibration._save(path, QueryStatistics(torch.zeros(2, 4, 8), torch.zeros(2, 4, 8, 8)))


def test_tensors_come_back_with_their_metadata_and_nothing_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "t.safetensors"
    write_tensors(path, {"a": torch.arange(3)}, "A test", {"n": "3"})
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("a").tolist() == [0, 1, 2] and file.metadata() == {"n": "3"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("write", [a_recording, query_statistics])
def test_a_disk_that_fills_up_is_told_and_its_room_given_back(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, FULL)
    with pytest.raises(NotEnoughDisk, match="filled the disk"):
        write(tmp_path / "t.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_between_steps_through_answers_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model()
    recording = tmp_path / "r.safetensors"
    save_recording(recording, RECORDING)
    failing(monkeypatch, FULL)
    head = RetainingHead(model.geometry, 4)
    lessons = [Lesson(recording, ((tokens(6, 7), tokens(3, 8)),))]
    with pytest.raises(NotEnoughDisk, match="filled the disk"):
        fit_through_answers(
            model, head, lessons, AnswerFitSettings(steps=1), 64, tmp_path / "s.safetensors"
        )
    assert list(tmp_path.iterdir()) == [recording]


def test_another_failure_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, SafetensorError("the header is too long"))
    with pytest.raises(SafetensorError, match="header"):
        a_recording(tmp_path / "t.safetensors")
    assert list(tmp_path.iterdir()) == []
