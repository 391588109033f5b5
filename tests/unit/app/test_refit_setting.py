"""`--refit` in the application: another session of the same size, under its own name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.exporting import export_session
from app.identity import identity_of
from app.importing import import_session
from app.service import Reader
from app.settings import ReadSettings
from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig
from tests.unit.app.tiny_reader import SETTINGS, tiny_loaded, use_tiny_model

REFIT = replace(SETTINGS, refit=True, allocation="global", budget_tokens=200)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_model(monkeypatch)


def test_it_is_another_session_of_the_same_size(reader: Reader, book: Path, tmp_path: Path) -> None:
    plain = reader.open(book, settings=replace(REFIT, refit=False, kv_bits="16"))
    moved = reader.open(book, settings=REFIT)
    assert plain.record.id != moved.record.id and plain.cache.nbytes == moved.cache.nbytes
    assert not plain.cache.layers[-1].values.fine.equal(moved.cache.layers[-1].values.fine)
    target = tmp_path / "book.longread"
    export_session(reader.library, moved.record.id, target)
    reader.library.delete_session(moved.record.id)
    record = import_session(reader.library, target)
    assert ReadSettings.from_dict(record.settings).refit


def test_a_reading_without_it_has_no_word_of_it_in_its_name() -> None:
    model: Any = tiny_loaded()

    class Digested:
        def digest(self) -> str:
            return "s"

    def eviction(refit: bool, twice: bool = False) -> dict[str, Any]:
        config = PrefillConfig(eviction=EvictionConfig(100, refit=refit))
        scorer: Any = Digested()
        found = identity_of("d", (1, 2), model, config, scorer, "p", twice)
        named: dict[str, Any] = found["eviction"]
        return named

    assert "refit" not in eviction(False) and "refit" not in eviction(False, True)
    assert eviction(True)["refit"] != eviction(True, True)["refit"]


def test_the_flag_reaches_the_report(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "tiny", "--budget", "300", "--chunk", "128", "--json"]
    for more in ([], ["--refit"]):
        assert main(["ingest", str(book), *flags, *more]) == 0
        assert json.loads(capsys.readouterr().out)["cache"]["refit"] is bool(more)


@pytest.mark.parametrize("twice", [False, True])
def test_what_it_sets_aside_is_in_the_plan(reader: Reader, book: Path, twice: bool) -> None:
    rules = replace(REFIT, read_twice=twice)
    with_it, without = (
        reader.plan(book, settings=replace(rules, refit=refit)).memory_bytes
        for refit in (True, False)
    )
    assert with_it > without
