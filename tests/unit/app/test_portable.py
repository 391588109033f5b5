"""A session travels in one file, and a bent file is refused before anything is in its place."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import PortableFileBad, SessionNotReady
from app.exporting import export_session
from app.importing import import_session
from app.library import Library
from app.paths import data_paths
from app.service import Reader
from app.store import original_file
from engine.errors import ScorerUnavailable, SnapshotCorrupt
from engine.generate import Sampling
from ingest import DocumentMissing
from tests.unit.app.tiny_reader import BOOK, SETTINGS, tiny_reader, use_tiny_model

SHORT = Sampling(max_new_tokens=8)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_model(monkeypatch)


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[tuple[Path, str, str]]:
    """A portable file, its session's id, and an answer given before it was made."""
    book = tmp_path / "My book.txt"
    book.write_text(BOOK, encoding="utf-8")
    reader = tiny_reader()
    session = reader.open(book)
    _, answer_id = reader.library.add_question(session.record.id, "Who?")
    answer = reader.ask(session, "Who?", SHORT)
    reader.library.set_answer(answer_id, answer.text, "done", answer.to_dict())
    target = tmp_path / "book.longread"
    nbytes = export_session(reader.library, session.record.id, target)
    assert nbytes == target.stat().st_size
    reader.library.close()
    yield target, session.record.id, answer.text


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Reader]:
    library = Library(data_paths(tmp_path / "elsewhere"))
    yield Reader(library, SETTINGS)
    library.close()


def test_an_imported_session_answers_without_reading(
    exported: tuple[Path, str, str], elsewhere: Reader
) -> None:
    file, session_id, text = exported
    record = import_session(elsewhere.library, file)
    assert record.id == session_id and record.unverified
    session = elsewhere.reopen(session_id)
    assert session.reused and elsewhere.ask(session, "Who?", SHORT).text == text
    assert not elsewhere.library.session(session_id).unverified
    messages = elsewhere.library.messages(session_id)
    assert [(m.role, m.text, m.state) for m in messages] == [
        ("user", "Who?", "done"),
        ("assistant", text, "done"),
    ]
    assert messages[1].reply_to == messages[0].id
    assert original_file(elsewhere.paths, record.document).name == "My book.txt"
    assert elsewhere.library.search_pages(record.document, '"wolves"') == [1]


def test_an_imported_session_may_not_name_a_file_of_heads(
    exported: tuple[Path, str, str], elsewhere: Reader, tmp_path: Path
) -> None:
    file, session_id, _ = exported
    import_session(elsewhere.library, file)
    planted = tmp_path / "planted.bin"
    planted.write_bytes(b"not to be opened")
    conn = elsewhere.library.database.get().conn
    with conn:
        conn.execute(
            "UPDATE sessions SET settings = json_set(settings, '$.scorer', ?)", [str(planted)]
        )
    with pytest.raises(ScorerUnavailable, match="does not bring along"):
        elsewhere.reopen(session_id)


def test_a_session_that_is_here_is_not_replaced(
    exported: tuple[Path, str, str], elsewhere: Reader
) -> None:
    file, session_id, _ = exported
    import_session(elsewhere.library, file)
    with pytest.raises(PortableFileBad, match="already"):
        import_session(elsewhere.library, file)
    elsewhere.library.delete_session(session_id)
    assert import_session(elsewhere.library, file).id == session_id


Entries = dict[str, bytes]


def rewritten(file: Path, change: Callable[[Entries], None], **how: Any) -> Path:
    """A copy of a portable file with changed entries; the manifest's hashes are made to fit."""
    from app.portable import digest_of

    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    change(entries)
    if how.get("rehash", True) and "manifest.json" in entries:
        manifest = json.loads(entries["manifest.json"])
        manifest["files"] = {
            name: digest_of(data) for name, data in entries.items() if name != "manifest.json"
        }
        entries["manifest.json"] = json.dumps(manifest).encode()
    target = file.with_name("bent.longread")
    with zipfile.ZipFile(target, "w", how.get("compression", zipfile.ZIP_STORED)) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return target


def manifest_field(path: str, value: Any) -> Callable[[Entries], None]:
    """Set one field of the manifest, as in "session.id"."""

    def change(entries: Entries) -> None:
        manifest = json.loads(entries["manifest.json"])
        at = manifest
        *parents, last = path.split(".")
        for name in parents:
            at = at[name]
        at[last] = value
        entries["manifest.json"] = json.dumps(manifest).encode()

    return change


def other_text(entries: Entries) -> None:
    entries["document.json"] = entries["document.json"].replace(b"wolves", b"sheeps")


def other_original(entries: Entries) -> None:
    (name,) = (n for n in entries if n.startswith("original/"))
    entries[name] += b"!"


BENDS: dict[str, Callable[[Entries], None]] = {
    "path outside": lambda e: e.update({"original/../../evil.txt": b"x"}),
    "absolute path": lambda e: e.update({"/tmp/evil.txt": b"x"}),
    "snapshot path": lambda e: e.update({"snapshot/../evil": b"x"}),
    "backslash": lambda e: e.update({"snapshot\\evil": b"x"}),
    "unknown file": lambda e: e.update({"run.pkl": b"x"}),
    "no manifest": lambda e: e.pop("manifest.json") and None,
    "no document": lambda e: e.pop("document.json") and None,
    "no messages": lambda e: e.pop("messages.json") and None,
    "second original": lambda e: e.update({"original/b.txt": b"x"}),
    "other original": other_original,
    "other format": manifest_field("format", "something"),
    "newer version": manifest_field("version", 99),
    "id with a path": manifest_field("session.id", "../../../../evil"),
    "other id": manifest_field("session.id", "0" * 24),
    "odd settings": manifest_field("session.settings", {"model": ["x"]}),
    "wrong type": manifest_field("session.n_tokens", "many"),
    "unfinished": manifest_field("session.state", "reading"),
    "pages outside": manifest_field("session.last_page", 99),
    "extra field": manifest_field("session.evil", 1),
    "no session": manifest_field("session", []),
    "messages": lambda e: e.update({"messages.json": b'[{"role": "root"}]'}),
    "deep json": lambda e: e.update({"messages.json": b"[" * 100_000}),
    "broken document": lambda e: e.update({"document.json": b'{"format": 1}'}),
    "no snapshot manifest": lambda e: e.pop("snapshot/manifest.json") and None,
}


@pytest.mark.parametrize("bend", BENDS.values(), ids=list(BENDS))
def test_a_bent_file_is_refused_and_leaves_nothing(
    bend: Callable[[Entries], None], exported: tuple[Path, str, str], elsewhere: Reader
) -> None:
    bent = rewritten(exported[0], bend)
    with pytest.raises(PortableFileBad):
        import_session(elsewhere.library, bent)
    assert elsewhere.library.sessions() == []
    assert list(elsewhere.paths.snapshots.iterdir()) == []
    assert list(elsewhere.paths.documents.iterdir()) == []
    assert not (exported[0].parent / "evil.txt").exists()


def test_a_changed_byte_is_found_by_its_hash(
    exported: tuple[Path, str, str], elsewhere: Reader
) -> None:
    def change(entries: Entries) -> None:
        data = bytearray(entries["snapshot/layers-000.safetensors"])
        data[-1] ^= 1
        entries["snapshot/layers-000.safetensors"] = bytes(data)

    with pytest.raises(PortableFileBad, match=r"layers-000\.safetensors"):
        import_session(elsewhere.library, rewritten(exported[0], change, rehash=False))


def test_compressed_entries_are_refused(exported: tuple[Path, str, str], elsewhere: Reader) -> None:
    bomb = rewritten(exported[0], lambda e: None, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(PortableFileBad, match="compressed"):
        import_session(elsewhere.library, bomb)


def test_a_cache_of_another_text_is_refused_when_first_opened(
    exported: tuple[Path, str, str], elsewhere: Reader
) -> None:
    file, session_id, _ = exported
    import_session(elsewhere.library, rewritten(file, other_text))
    with pytest.raises(SnapshotCorrupt, match="another text"):
        elsewhere.reopen(session_id)
    assert elsewhere.library.session(session_id).state == "damaged"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip at all"])
def test_what_is_no_archive_is_refused(tmp_path: Path, elsewhere: Reader, content: bytes) -> None:
    file = tmp_path / "x.longread"
    file.write_bytes(content)
    with pytest.raises(PortableFileBad):
        import_session(elsewhere.library, file)
    with pytest.raises(DocumentMissing):
        import_session(elsewhere.library, tmp_path / "no.longread")


def test_only_a_finished_session_is_exported(tmp_path: Path, elsewhere: Reader) -> None:
    from engine.errors import PrefillStopped

    book = tmp_path / "b.txt"
    book.write_text(BOOK, encoding="utf-8")
    with pytest.raises(PrefillStopped):
        elsewhere.open(book, stop=lambda: True)
    (record,) = elsewhere.library.sessions()
    with pytest.raises(SessionNotReady):
        export_session(elsewhere.library, record.id, tmp_path / "b.longread")
    assert not (tmp_path / "b.longread").exists()
