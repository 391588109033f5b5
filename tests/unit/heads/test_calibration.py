"""Query statistics are kept between runs, and a damaged file of them is replaced."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.scorers.expected_attention import QueryStatistics
from heads import calibration
from tests.fakes import TinyModel, tiny_model, tokens


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return tiny_model()


@pytest.fixture
def kept(model: TinyModel, tmp_path: Path) -> Path:
    """The file that a first run leaves."""
    statistics_in(model, tmp_path)
    return next(tmp_path.iterdir())


def statistics_in(model: TinyModel, folder: Path) -> QueryStatistics:
    given: Any = model
    return calibration.expected_attention(given, folder, tokens(60)).statistics


def test_statistics_are_gathered_once(
    model: TinyModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "gather", lambda *given: pytest.fail("gathered again"))
    found = statistics_in(model, kept.parent)
    assert torch.equal(found.mean, load_file(kept)["mean"])


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:300])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def without_covariance(file: Path) -> None:
    save_file({"mean": load_file(file)["mean"]}, file)


def of_another_shape(file: Path) -> None:
    save_file({name: value[:1] for name, value in load_file(file).items()}, file)


@pytest.mark.parametrize("damage", [cut_off, emptied, without_covariance, of_another_shape])
def test_damaged_statistics_are_logged_and_gathered_anew(
    damage: Any, model: TinyModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, said = kept.read_bytes(), []
    monkeypatch.setattr(
        logging.getLogger("longread"), "warning", lambda *w: said.append(w[0] % w[1:])
    )
    damage(kept)
    statistics_in(model, kept.parent)
    assert kept.read_bytes() == before
    assert len(said) == 1 and kept.name in said[0] and "anew" in said[0]
    statistics_in(model, kept.parent)
    assert len(said) == 1
