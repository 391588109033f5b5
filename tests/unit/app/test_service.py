"""A document is read once; what is on disk afterwards is trusted only as far as it is proven."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.desk import cards
from app.errors import BadPageRange, DocumentTooLong, NoSuchSession
from app.library import Library
from app.paths import data_paths
from app.service import OpenSession, Reader
from app.settings import ReadSettings, eviction_config
from engine import decoding, files, manifest
from engine.errors import (
    InvalidSetting,
    NotEnoughDisk,
    NotEnoughMemory,
    PrefillStopped,
    SnapshotCorrupt,
    SnapshotMismatch,
)
from engine.eviction import EvictionConfig, Profile
from engine.generate import Sampling
from engine.loader import LoadedModel
from ingest import DocumentMissing
from tests.unit.app.tiny_reader import BOOK, SETTINGS, tiny_loaded, tiny_reader, use_tiny_model

SHORT = Sampling(max_new_tokens=12)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_model(monkeypatch)


class StopAfter:
    """Says stop from the n-th question on."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def same_cache(one: OpenSession, two: OpenSession) -> bool:
    """Whether two sessions hold the same entries."""
    return all(
        a.offsets == b.offsets
        and torch.equal(a.positions, b.positions)
        and torch.equal(a.keys.fine, b.keys.fine)
        and torch.equal(a.values.fine, b.values.fine)
        for a, b in zip(one.cache.layers, two.cache.layers, strict=True)
    )


@pytest.mark.parametrize(("weights", "while_reading"), [("same", 1), ("captured", 0)])
def test_a_card_records_nothing_while_it_reads(
    weights: str, while_reading: int, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, asked = decoding.choose_decoder, []

    def counted(model: LoadedModel, wanted: str, **how: Any) -> decoding.DecoderChoice:
        asked.append(wanted)
        return choose(model, "same", **how)

    monkeypatch.setattr(decoding, "choose_decoder", counted)
    monkeypatch.setattr(decoding, "check_answer_format", lambda *_: None)
    reader = Reader(Library(data_paths()), SETTINGS, answer_weights=weights)
    session = reader.open(book)
    assert len(asked) == while_reading
    reader.ask(session, "Who met the wolves?", SHORT)
    assert asked == [weights]


@pytest.mark.parametrize("weights", ["nf4", "captured"])
def test_answer_weights_that_cannot_be_are_refused_before_anything_is_read(
    weights: str, book: Path
) -> None:
    library = Library(data_paths())
    reader = Reader(library, SETTINGS, answer_weights=weights)
    for _ in range(2):  # the second document of a command, too
        with pytest.raises(InvalidSetting, match="of a card"):
            reader.open(book)
    assert not library.sessions()


def test_the_second_opening_reads_nothing_and_answers_the_same(
    reader: Reader, book: Path, announced: list[str]
) -> None:
    first = reader.open(book)
    before = reader.ask(first, "Who met the wolves?", SHORT)
    assert not first.reused and first.report.prefill_tokens == len(first.cache.token_ids)
    assert len(first.report.quarter_tok_s) == 4 and first.report.restore_s == 0
    later = tiny_reader()
    second = later.open(book)
    after = later.ask(second, "Who met the wolves?", SHORT)
    assert second.reused and second.report.prefill_tokens == 0 and second.report.restore_s > 0
    assert second.record.id == first.record.id and same_cache(first, second)
    assert after.text == before.text
    assert after.reused_tokens == round(second.cache.kept_tokens)
    assert after.prefilled_tokens < 400
    later.library.close()


def test_waiting_for_another_program_is_said(
    reader: Reader, book: Path, announced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SILENT_WAIT_S", 0.01)
    session_id = reader.open(book).record.id
    held, heard = threading.Event(), threading.Event()

    def read_elsewhere() -> None:
        with files.locked(reader.paths.snapshots, session_id):
            held.set()
            heard.wait(10)

    def say(text: str) -> None:
        announced.append(text)
        heard.set()

    other = threading.Thread(target=read_elsewhere)
    other.start()
    assert held.wait(10)
    later = Reader(reader.library, SETTINGS, announce=say)
    assert later.open(book).reused
    other.join()
    assert announced[-1] == "Another program is reading this document; waiting for it."
    assert not list(reader.paths.snapshots.glob(".*.lock"))


def test_who_waits_for_another_program_can_be_stopped(
    reader: Reader, book: Path, announced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.files.SILENT_WAIT_S", 0.02)
    session_id = reader.plan(book).session_id
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with files.locked(reader.paths.snapshots, session_id):
            holding.set()
            done.wait(20)

    other = threading.Thread(target=hold)
    other.start()
    assert holding.wait(10)
    with pytest.raises(PrefillStopped):
        reader.open(book, stop=stop)
    assert other.is_alive(), "the other program had not ended"
    done.set()
    other.join()
    assert sum("waiting for it" in said for said in announced) == 1
    assert reader.open(book).record.state == "ready"


def test_the_order_of_questions_does_not_matter(reader: Reader, book: Path) -> None:
    session = reader.open(book)
    questions = ["Who?", "Where did they meet?", "When?"]
    forward = {q: reader.ask(session, q, SHORT).text for q in questions}
    backward = {q: reader.ask(session, q, SHORT).text for q in reversed(questions)}
    assert forward == backward


def test_the_first_tokens_are_never_evicted(reader: Reader, book: Path) -> None:
    session = reader.open(book)
    assert session.cache.kept_fraction < 0.5
    for layer in session.cache.layers:
        for head in range(session.cache.geometry.n_kv_heads):
            assert layer.positions[layer.rows(head)][:4].tolist() == [0, 1, 2, 3]


def test_a_stopped_reading_goes_on_from_its_checkpoint(
    reader: Reader, book: Path, announced: list[str]
) -> None:
    whole = tiny_reader().open(book, settings=replace(SETTINGS, scorer="key_norm"))
    settings = replace(SETTINGS, scorer="key_norm")
    reader.library.delete_session(whole.record.id)
    with pytest.raises(PrefillStopped):
        reader.open(book, settings=settings, stop=StopAfter(5))
    (record,) = reader.library.sessions()
    assert record.state == "reading"
    partial = reader.paths.partial(record.id)
    assert partial.is_dir()
    session = reader.open(book, settings=settings)
    assert session.report.resumed_from == 5 * SETTINGS.chunk_tokens
    assert any(text.startswith("Resuming at token 640 of") for text in announced)
    assert same_cache(session, whole) and not partial.exists()
    assert reader.library.session(record.id).state == "ready"


def test_an_unfinished_session_is_read_on_by_its_id(reader: Reader, book: Path) -> None:
    with pytest.raises(PrefillStopped):
        reader.open(book, stop=StopAfter(3))
    (record,) = reader.library.sessions()
    book.unlink()
    session = reader.reopen(record.id[:8])
    assert session.report.resumed_from == 3 * SETTINGS.chunk_tokens


def test_a_damaged_checkpoint_is_dropped_aloud(
    reader: Reader, book: Path, announced: list[str]
) -> None:
    with pytest.raises(PrefillStopped):
        reader.open(book, stop=StopAfter(5))
    (record,) = reader.library.sessions()
    spoil(reader.paths.partial(record.id) / "layers-000.safetensors")
    session = reader.open(book)
    assert session.report.resumed_from == 0
    assert any("checkpoint is dropped" in text and "layers-000" in text for text in announced)


def test_a_damaged_snapshot_is_refused_by_name_and_never_read_again_silently(
    reader: Reader, book: Path
) -> None:
    session_id = reader.open(book).record.id
    spoil(reader.paths.snapshot(session_id) / "layers-000.safetensors")
    reader = tiny_reader()
    for _ in range(2):
        with pytest.raises(SnapshotCorrupt, match=r"layers-000\.safetensors"):
            reader.open(book)
        record = reader.library.session(session_id)
        assert record.state == "damaged" and "layers-000.safetensors" in record.problem
    session = reader.open(book, reread=True)
    assert not session.reused and reader.library.session(session_id).state == "ready"
    reader.library.close()


def test_a_session_stays_ready_while_it_is_read_anew(reader: Reader, book: Path) -> None:
    first = reader.open(book)
    with pytest.raises(PrefillStopped):
        reader.open(book, reread=True, stop=StopAfter(5))
    assert reader.library.session(first.record.id).state == "ready"
    assert reader.paths.partial(first.record.id).is_dir()  # for another --reread
    later = tiny_reader()
    again = later.open(book)
    assert again.reused and same_cache(again, first)
    assert not reader.paths.partial(first.record.id).exists()
    later.library.close()


def test_a_session_that_is_deleted_while_it_is_read_leaves_nothing(
    reader: Reader, book: Path
) -> None:
    def forget_it(stage: str, done: int, total: int) -> None:
        if stage == "save":
            reader.library.database.get().execute("DELETE FROM sessions")

    with pytest.raises(NoSuchSession, match="deleted while its document was being read"):
        reader.open(book, on_progress=forget_it)
    assert list(reader.paths.snapshots.iterdir()) == []


def test_a_lost_library_row_is_mended_from_the_snapshot(reader: Reader, book: Path) -> None:
    session_id = reader.open(book).record.id
    reader.library.database.get().execute("DELETE FROM sessions")
    other = tiny_reader()
    assert other.open(book).reused
    assert other.library.session(session_id).kept_tokens > 0
    other.library.close()


def test_a_changed_model_is_named_and_nothing_is_read_again_unasked(
    reader: Reader, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = reader.open(book).record.id
    changed = replace(tiny_loaded(), fingerprint={"weights": "other"})
    monkeypatch.setattr("engine.loader.load_model", lambda name, **how: changed)
    later = tiny_reader()
    with pytest.raises(SnapshotMismatch, match=r"model\.weights"):
        later.reopen(session_id)
    assert later.library.session(session_id).state == "ready"
    again = later.reopen(session_id, reread=True)
    assert not again.reused and again.record.id != session_id
    later.library.close()


def test_a_session_outlives_the_settings_it_was_read_with(
    reader: Reader, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = reader.open(book)
    before = reader.ask(session, "Who?", SHORT).text

    def other(settings: ReadSettings, profile: Profile | None = None) -> EvictionConfig:
        return replace(eviction_config(settings, profile), sink_tokens=9)

    monkeypatch.setattr("app.preparing.eviction_config", other)
    later = tiny_reader()
    again = later.reopen(session.record.id)
    assert again.reused and again.record.id == session.record.id
    assert later.ask(again, "Who?", SHORT).text == before
    later.library.close()


def test_other_settings_make_another_session(reader: Reader, book: Path) -> None:
    ids = {
        reader.open(book, settings=settings, pages=pages).record.id
        for settings, pages in (
            (SETTINGS, None),
            (replace(SETTINGS, budget_tokens=500), None),
            (replace(SETTINGS, chunk_tokens=64), None),
            (replace(SETTINGS, scorer="recency"), None),
            (replace(SETTINGS, positions="compact"), None),
        )
    }
    assert len(ids) == 5


def test_a_document_over_the_limit_is_refused_with_the_pages_that_fit(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = tmp_path / "book.md"
    book.write_text("".join(f"# Part {n}\n\n{BOOK[:500]}\n\n" for n in range(6)))
    monkeypatch.setattr("app.plan.MAX_DOCUMENT_TOKENS", 1200)
    with pytest.raises(DocumentTooLong) as caught:
        reader.open(book)
    assert caught.value.pages is not None
    first, last = caught.value.pages
    assert f"--pages {first}-{last}" in str(caught.value)
    session = reader.open(book, pages=(first, last))
    assert session.record.n_tokens <= 1200
    with pytest.raises(DocumentTooLong):
        reader.open(book, pages=(first, last + 1))


@pytest.mark.parametrize("pages", [(0, 1), (2, 1), (1, 99)])
def test_pages_outside_the_document_are_refused(
    reader: Reader, book: Path, pages: tuple[int, int]
) -> None:
    with pytest.raises(BadPageRange):
        reader.open(book, pages=pages)


def test_too_little_room_is_said_with_figures_before_anything_is_read(
    reader: Reader, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.plan.available_bytes", lambda device: 2**16)
    with pytest.raises(NotEnoughMemory, match=r"\d+ MiB"):
        reader.open(book)
    monkeypatch.undo()
    use_tiny_model(monkeypatch)
    monkeypatch.setattr("app.plan._DISK_MARGIN_BYTES", 2**60)
    with pytest.raises(NotEnoughDisk, match=r"\d+ MiB"):
        reader.open(book)
    assert reader.library.sessions() == []


def test_a_plan_reads_nothing(reader: Reader, book: Path) -> None:
    plan = reader.plan(book)
    assert plan.fits and not plan.already_read and plan.n_tokens == len(BOOK)
    assert plan.kept_tokens == 400 and plan.cache_bytes > 0 and plan.seconds is not None
    assert reader.library.sessions() == []
    reader.open(book)
    assert reader.plan(book).already_read


@pytest.mark.parametrize("harm", ["gone", "cut short", "no manifest"])
def test_a_plan_sees_that_what_was_saved_cannot_be_opened(
    reader: Reader, book: Path, harm: str
) -> None:
    folder = reader.library.paths.snapshot(reader.open(book).record.id)
    assert reader.plan(book).damage == ""
    victim = folder / ("manifest.json" if harm == "no manifest" else "layers-000.safetensors")
    if harm == "cut short":
        victim.write_bytes(victim.read_bytes()[:-9])
    else:
        victim.unlink()
    plan = reader.plan(book)
    assert plan.already_read and victim.name in plan.damage
    words = " ".join(cards.plan_problems(plan.to_dict()))
    assert victim.name in words and "Delete that session" in words
    assert "opens at once" not in cards.plan_card(plan.to_dict())
    of_before = plan.to_dict()
    del of_before["damage"]  # a plan that was kept from before it had this
    assert "opens at once" in cards.plan_card(of_before)


def test_a_plan_does_not_call_a_session_of_a_later_version_damaged(
    reader: Reader, book: Path
) -> None:
    folder = reader.library.paths.snapshot(reader.open(book).record.id)
    known = manifest.read(folder)
    manifest.write(folder, {**known, "version": manifest.VERSION + 1})
    damage = reader.plan(book).damage
    assert "later Longread" in damage and "damaged" not in damage


def test_a_stopped_answer_keeps_its_text(reader: Reader, book: Path) -> None:
    session = reader.open(book)
    pieces: list[str] = []
    answer = reader.ask(
        session, "Who?", Sampling(max_new_tokens=50), on_text=pieces.append, stop=StopAfter(3)
    )
    assert answer.finish == "stop" and answer.new_tokens == 4


def test_a_missing_file_and_an_unknown_session_leave_nothing_behind(
    reader: Reader, tmp_path: Path
) -> None:
    with pytest.raises(DocumentMissing):
        reader.open(tmp_path / "no.pdf")
    with pytest.raises(NoSuchSession):
        reader.reopen("feedbeef")
    assert list(reader.paths.documents.iterdir()) == []


def spoil(file: Path) -> None:
    """Turn one bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
