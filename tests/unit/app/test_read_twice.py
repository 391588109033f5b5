"""`--read-twice` in the application: another session, one first pass, and a truthful report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.cli import main
from app.exporting import export_session
from app.importing import import_session
from app.service import OpenSession, Reader
from app.settings import ReadSettings
from engine.errors import InvalidSetting, PrefillStopped
from engine.view import CacheView
from tests.unit.app.tiny_reader import SETTINGS, tiny_loaded, tiny_reader, use_tiny_model

TWICE = replace(SETTINGS, read_twice=True, allocation="global", budget_tokens=200)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_model(monkeypatch)


def places(session: OpenSession) -> list[Any]:
    return [(layer.offsets, layer.positions.tolist()) for layer in session.cache.layers]


def stop_in_second(reader: Reader, book: Path) -> None:
    """A reading that is stopped after the first piece of its second pass."""
    stages: list[str] = []
    with pytest.raises(PrefillStopped):
        reader.open(
            book,
            settings=TWICE,
            on_progress=lambda stage, done, total: stages.append(stage),
            stop=lambda: stages.count("read_again") > 1,
        )


def test_it_is_another_session_with_another_choice_of_the_same_size(
    reader: Reader, book: Path
) -> None:
    once = reader.open(book, settings=replace(TWICE, read_twice=False))
    stages: list[str] = []
    twice = reader.open(
        book, settings=TWICE, on_progress=lambda stage, done, total: stages.append(stage)
    )
    assert once.record.id != twice.record.id
    assert once.cache.kept_tokens == twice.cache.kept_tokens == 200
    assert places(once) != places(twice)
    assert stages.index("read") < stages.index("read_again") < len(stages) - 1
    assert twice.report.second_s > 0 and twice.report.second_tokens == twice.cache.n_seen
    assert twice.report.prefill_tokens == twice.cache.n_seen
    later = tiny_reader()
    again = later.open(book, settings=TWICE)
    assert again.reused and places(again) == places(twice)
    assert later.reopen(twice.record.id).record.settings["read_twice"] is True
    later.library.close()


def test_a_single_reading_s_name_does_not_know_of_a_second(reader: Reader, book: Path) -> None:
    job = reader._job(
        reader._keep(book, None, lambda *said: None, None).document, None, SETTINGS, print
    )
    assert "second_reading" not in job.identity
    job.settings = TWICE
    del job.__dict__["identity"]
    assert job.identity["second_reading"]["first_pass_factor"] > 1


@pytest.mark.parametrize("cut", ["killed", "stopped"])
def test_after_a_cut_between_the_passes_the_first_is_not_repeated(
    cut: str, reader: Reader, book: Path, announced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reader.open(book, settings=TWICE)
    reader.library.delete_session(whole.record.id)
    reader.forget(whole.record.id)
    if cut == "killed":
        with monkeypatch.context() as patched:
            patched.setattr("heads.second_reading.measure", killed)
            with pytest.raises(KeyboardInterrupt):
                reader.open(book, settings=TWICE)
    else:
        stop_in_second(reader, book)
    (record,) = reader.library.sessions()
    assert record.state == "reading" and reader.paths.partial(record.id).is_dir()
    assert not reader.paths.snapshot(record.id).exists()
    monkeypatch.setattr("engine.prefill.read_chunk", killed)
    later = tiny_reader(announced)
    session = later.open(book, settings=TWICE)
    assert places(session) == places(whole) and not later.paths.partial(record.id).exists()
    assert all(
        torch.equal(a.scores, b.scores)
        for a, b in zip(session.cache.layers, whole.cache.layers, strict=True)
    )
    assert session.report.resumed_from == session.cache.n_seen
    assert session.report.prefill_tokens == 0
    assert announced[-1] == "The first reading is on disk; the second begins."
    later.library.close()


def killed(*arguments: Any, **how: Any) -> None:
    raise KeyboardInterrupt


def test_a_stop_in_the_first_pass_goes_on_from_there(reader: Reader, book: Path) -> None:
    left = iter(range(5))
    with pytest.raises(PrefillStopped):
        reader.open(book, settings=TWICE, stop=lambda: next(left, None) is None)
    (record,) = reader.library.sessions()
    session = reader.reopen(record.id)
    assert session.report.resumed_from == 5 * TWICE.chunk_tokens
    assert session.cache.kept_tokens == 200


def test_the_plan_counts_two_passes_and_the_larger_cache(reader: Reader, book: Path) -> None:
    once = reader.plan(book, settings=replace(TWICE, read_twice=False))
    twice = reader.plan(book, settings=TWICE)
    assert (once.kept_tokens, once.cache_bytes) == (twice.kept_tokens, twice.cache_bytes)
    assert once.seconds and twice.seconds and twice.seconds >= 2 * once.seconds
    assert twice.memory_bytes >= once.memory_bytes + 2 * once.cache_bytes
    assert twice.disk_bytes > once.disk_bytes + 2 * once.cache_bytes


def test_what_cannot_be_read_twice_is_refused_before_anything_is_read(
    reader: Reader, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidSetting, match="leaves no choice"):
        reader.open(book, settings=replace(TWICE, budget_tokens=0))
    model = tiny_loaded()
    n_tokens = reader.plan(book, settings=TWICE).n_tokens
    tight = replace(model, geometry=replace(model.geometry, window=n_tokens + 300))
    monkeypatch.setattr("engine.loader.load_model", lambda name, **how: tight)
    other = tiny_reader()
    with pytest.raises(InvalidSetting, match="no room to repeat"):
        other.open(book, settings=replace(TWICE, positions="original"))
    assert other.library.sessions() == []
    other.library.close()


def test_compact_positions_stay_inside_the_window(
    reader: Reader, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_loaded()
    window = 2600
    small = replace(model, geometry=replace(model.geometry, window=window))
    monkeypatch.setattr("engine.loader.load_model", lambda name, **how: small)
    seen: list[int] = []
    plain = CacheView.attend

    def watched(self: CacheView, layer: int, *rest: Any) -> Any:
        out = plain(self, layer, *rest)
        seen.append(int(self.entries(layer).start.max()) + self.n_tail)
        return out

    monkeypatch.setattr(CacheView, "attend", watched)
    other = tiny_reader()
    settings = replace(TWICE, positions="compact", allocation="uniform", budget_tokens=500)
    session = other.open(book, settings=settings)
    assert session.cache.positions_mode == "compact" and session.cache.kept_tokens == 500
    assert len(seen) > 4 and max(seen) <= window
    other.library.close()


def test_the_flag_reaches_the_report(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "tiny", "--budget", "300", "--chunk", "128", "--json"]
    found = []
    for more in ([], ["--read-twice"]):
        assert main(["ingest", str(book), *flags, *more]) == 0
        out, err = capsys.readouterr()
        found.append(json.loads(out))
        assert ("second time" in err) == bool(more)
    once, twice = found
    assert once["cache"]["read_twice"] is False and twice["cache"]["read_twice"] is True
    assert once["session"] != twice["session"]
    assert once["timing"]["second_reading_s"] == 0 < twice["timing"]["second_reading_s"]
    assert twice["prefilled_tokens"] == 2 * once["prefilled_tokens"]
    assert main(["ask", str(book), "-q", "Who?", *flags, "--read-twice"]) == 0
    asked = json.loads(capsys.readouterr().out)
    assert asked["reused"] and asked["cache"]["read_twice"] is True


def test_it_goes_through_a_portable_file(reader: Reader, book: Path, tmp_path: Path) -> None:
    session = reader.open(book, settings=TWICE)
    target = tmp_path / "book.longread"
    export_session(reader.library, session.record.id, target)
    reader.library.delete_session(session.record.id)
    record = import_session(reader.library, target)
    assert ReadSettings.from_dict(record.settings).read_twice
