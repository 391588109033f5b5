"""`--kv-bits` in the application: a smaller session of its own, planned, reported and portable."""

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
from app.preparing import _filling
from app.service import Reader
from app.settings import ReadSettings
from engine.errors import SnapshotCorrupt
from engine.prefill import PrefillConfig
from engine.quantisation import QuantConfig
from tests.unit.app.tiny_reader import SETTINGS, tiny_loaded, use_tiny_model

K8V4 = replace(SETTINGS, kv_bits="k8v4", budget_tokens=400)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_model(monkeypatch)


def test_it_is_a_smaller_session_that_travels(reader: Reader, book: Path, tmp_path: Path) -> None:
    plain = reader.open(book, settings=replace(K8V4, kv_bits="16"))
    small = reader.open(book, settings=K8V4)
    assert plain.record.id != small.record.id and small.cache.nbytes < 0.8 * plain.cache.nbytes
    assert small.record.snapshot_bytes < plain.record.snapshot_bytes
    target = tmp_path / "book.longread"
    export_session(reader.library, small.record.id, target)
    reader.library.delete_session(small.record.id)
    record = import_session(reader.library, target)
    assert ReadSettings.from_dict(record.settings).kv_bits == "k8v4"
    assert reader.open(book, settings=K8V4).reused


def test_a_reading_in_16_bits_has_no_word_of_it_in_its_name() -> None:
    model: Any = tiny_loaded()

    class Digested:
        def digest(self) -> str:
            return "s"

    def named(quant: QuantConfig) -> dict[str, Any]:
        scorer: Any = Digested()
        return identity_of("d", (1, 2), model, PrefillConfig(quant=quant), scorer, "p")

    assert "quantisation" not in named(QuantConfig())
    assert named(QuantConfig(8, 4)) != named(QuantConfig(8, 8))


def test_the_plan_counts_fewer_bytes(reader: Reader, book: Path) -> None:
    whole, small = (reader.plan(book, settings=replace(K8V4, kv_bits=b)) for b in ("16", "k8v4"))
    assert small.cache_bytes < whole.cache_bytes and small.disk_bytes < whole.disk_bytes
    assert small.memory_bytes < whole.memory_bytes


def test_the_flag_reaches_the_report(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "tiny", "--budget", "300", "--chunk", "128", "--json"]
    assert main(["ingest", str(book), *flags, "--kv-bits", "k8v4"]) == 0
    cache = json.loads(capsys.readouterr().out)["cache"]
    assert (cache["k_bits"], cache["v_bits"]) == (8, 4)
    assert main(["ingest", str(book), *flags, "--kv-bits", "3"]) == 2
    assert "k8v4" in capsys.readouterr().err


def test_k8v4_is_what_nobody_asked_for_and_a_refit_keeps_16(reader: Reader, book: Path) -> None:
    assert reader.open(book).cache.quant == QuantConfig(8, 4)
    assert reader.open(book, settings=replace(SETTINGS, refit=True)).cache.quant == QuantConfig()


def test_settings_from_before_there_were_bits_mean_16() -> None:
    stored = SETTINGS.to_dict()
    assert ReadSettings.from_dict(stored) == SETTINGS  # the desk's, of which nothing is missing
    del stored["kv_bits"]
    assert ReadSettings.from_dict(stored).kv_bits == "16"


def test_what_was_read_in_16_bits_once_is_not_read_again(
    reader: Reader, announced: list[str], book: Path
) -> None:
    old = reader.open(book, settings=replace(SETTINGS, kv_bits="16"))
    reader.forget(old.record.id)
    assert reader.plan(book).already_read
    found = reader.open(book)
    assert found.reused and found.record.id == old.record.id and "--reread" in announced[-1]
    asked_for = reader.open(book, settings=K8V4)
    assert not asked_for.reused and asked_for.record.id != old.record.id
    assert reader.open(book).record.id == asked_for.record.id  # today's defaults come first


def test_a_damaged_session_of_earlier_defaults_is_named_once(reader: Reader, book: Path) -> None:
    old = reader.open(book, settings=replace(SETTINGS, kv_bits="16"))
    reader.forget(old.record.id)
    (reader.paths.snapshot(old.record.id) / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(SnapshotCorrupt, match=r"manifest\.json"):
        reader.open(book)
    found = reader.open(book)
    assert not found.reused and found.record.id != old.record.id


def test_other_choices_are_not_taken_for_defaults(reader: Reader, book: Path) -> None:
    reader.open(book, settings=replace(SETTINGS, kv_bits="16", budget_tokens=200))
    reader.open(book, settings=replace(SETTINGS, kv_bits="4"))
    assert not reader.open(book).reused
    anew = reader.open(book, settings=replace(SETTINGS, kv_bits="16"), reread=True)
    assert not anew.reused and anew.cache.quant == QuantConfig()


def test_other_heads_of_the_same_name_serve_too(
    reader: Reader, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.scorers import keydiff

    first = reader.open(book)
    reader.forget(first.record.id)
    monkeypatch.setattr(keydiff.KeyDiffScorer, "digest", lambda self: "trained anew")
    assert reader.open(book).record.id == first.record.id
    again = reader.open(book, reread=True)
    assert not again.reused and again.record.id != first.record.id


def test_megabytes_become_entries_and_bits(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "tiny", "--scorer", "keydiff", "--chunk", "128", "--json"]
    assert main(["ingest", str(book), *flags, "--cache-mb", "1"]) == 0
    cache = json.loads(capsys.readouterr().out)["cache"]
    assert cache["bytes"] <= 1_000_000
    with pytest.raises(SystemExit, match="2"):  # one or the other
        main(["ingest", str(book), *flags, "--cache-mb", "1", "--budget", "9"])


def test_beyond_the_window_megabytes_buy_finer_bits_once_heads_are_full() -> None:
    """The window holds 4,096 tokens, 2,048 of them for the question and the answer."""
    model: Any = tiny_loaded()
    wanted = replace(SETTINGS, budget_tokens=None, kv_bits=None, cache_mb=50)
    held = _filling(wanted, 60_000, model)
    assert (held.budget_tokens, held.kv_bits, held.cache_mb) == (2048, "16", None)
    inside = _filling(wanted, 2000, model)
    assert inside.budget_tokens > 2048 and inside.kv_bits == "16"
