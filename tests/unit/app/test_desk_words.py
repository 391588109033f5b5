"""What the desk says and shows, without a page: text made harmless, chips, advice, one instance."""

from __future__ import annotations

import html
import re
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.desk import words
from app.desk.advice import advice
from app.desk.chat import chips, conversation, harmless
from app.desk.instance import DeskLock, announced_url, running_desk
from app.desk.uploads import Uploads
from app.records import JobView, MessageRecord


def test_an_answer_cannot_bring_tags_images_or_hidden_links() -> None:
    text = harmless("<img src=x> ![a](http://e/x) [b](http://e) [c][d]\n\n[d]: http://e/ `<i>`")
    assert "&lt;img" in text and "`<i>`" in text
    assert "](" not in text and "][" not in text and "]:" not in text


def test_code_is_left_as_it_is_even_while_it_is_being_written() -> None:
    fence = "see\n```html\n<b>&</b> [x](y)\n"
    assert harmless(fence) == fence
    assert harmless(fence + "```\n<b>") == fence + "```\n&lt;b>"
    assert harmless("\\`<b>`") == "\\`&lt;b>`"


def test_chips_tell_verified_from_not_verified_in_words() -> None:
    shown = chips(
        [
            {"page": 3, "label": "3", "quote": "a <b>", "verified": True},
            {"page": 3, "label": "3", "quote": "c", "verified": True},
            {"page": 9, "label": "ix", "quote": "d", "verified": False},
        ],
        "page",
        "k",
    )
    assert shown.count("\u2713 p. 3") == 1
    assert "p. ix (page 9 of the file) \u00b7 not verified" in shown
    assert "a &lt;b&gt;" in shown
    assert "similar words" in shown and "meaning" not in shown
    assert chips([], "page", "k") == ""


def message(number: int, role: str, state: str, text: str = "", **values: Any) -> MessageRecord:
    """One message of a conversation."""
    reply = number - 1 if role == "assistant" else None
    return MessageRecord(number, "s", role, text, state, reply, values, "")


def test_an_answer_grows_under_its_own_question() -> None:
    messages = [
        message(1, "user", "done", "Left when the desk was closed?"),
        message(2, "assistant", "pending"),
        message(3, "user", "done", "Asked now?"),
        message(4, "assistant", "pending"),
    ]
    answering = JobView(
        id="q", kind="question", state="running", done=0, total=0, tok_s=0.0, eta_s=None,
        text="Chapter", message="Answering.", result={}, session_id="s", payload={"answer_id": 4},
    )  # fmt: skip
    shown = [m["content"] for m in conversation(messages, answering, "page", "k")]
    assert "Chapter" not in shown[1] and shown[3] == "Chapter"


def test_a_question_is_shown_as_it_was_typed() -> None:
    markdown_it = pytest.importorskip("markdown_it")
    typed = [
        "2*3*4 and __init__ cost $5$?", "# Who", "1907. Which ship?", "2) Who?", "- one\n- two",
        "+ one", "Who\n===", "> quoted", "    four", "a | b\n--|--",
        "see http://e.test, www.e.test",
        "mail a@e.test <b>now</b> &amp; `code` ~~gone~~ ![x](y)", "first\n\n  second  third",
        "\\(x\\) and \\[y\\]", ":smile: x^2^ H~2~O", "***", "```\nfence",
    ]  # fmt: skip
    markdown = markdown_it.MarkdownIt("gfm-like", {"breaks": True, "html": True, "linkify": False})
    for text in typed:
        (shown,) = conversation([message(1, "user", "done", text)], None, "page", "k")
        html_text = markdown.render(shown["content"]).strip()
        assert re.fullmatch("<p>[^<]*(<br ?/?>\n?[^<]*)*</p>", html_text), html_text
        lines = re.split("<br ?/?>\n?", html_text[3:-4])
        assert [html.unescape(line).replace("\xa0", " ") for line in lines] == text.split("\n")
        assert "www." not in shown["content"] and "$" not in shown["content"]


def test_a_failed_answer_names_no_flags_and_says_what_to_do() -> None:
    problem = "layers-000.safetensors fails its checksum. Read the document again: add --reread."
    for details in ({"problem": problem, "error": "SnapshotCorrupt"}, {"problem": problem}):
        messages = [message(2, "assistant", "failed", **details)]
        (shown,) = conversation(messages, None, "page", "k")
        assert "fails its checksum" in shown["content"] and "--" not in shown["content"]
        assert ("Delete the session" in shown["content"]) is ("error" in details)


def test_advice_names_no_flags_and_keeps_a_next_step() -> None:
    locked = advice("The document is protected by a password. Give it with --password.",
                    "PasswordRequired")  # fmt: skip
    assert locked == (
        "The document is protected by a password. Type its password and open it again."
    )
    plain = "The file is damaged. Try another copy of it."
    assert advice(plain, "BrokenDocument") == plain
    assert "`" not in advice("No session. List them with the command `sessions`.", "NoSuchSession")


def test_words_for_numbers() -> None:
    assert words.count(1, "page") == "1 page"
    assert words.count(1204, "token") == "1,204 tokens"
    assert words.size(50_331_648) == "48 MiB"
    assert words.duration(0.2) == "about 1 second"
    assert words.duration(600) == "about 10 minutes"
    assert words.page_range("", None) is None
    assert words.page_range("2", "5") == (2, 5)
    for first, last in (("5", "2"), ("a", "2"), ("0", "1"), ("", "3")):
        with pytest.raises(ValueError, match=r"[Pp]age|range"):
            words.page_range(first, last)
    with pytest.raises(ValueError, match="counted from 1"):
        words.page_range("0", "1")


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [(1, 212, "212 pages"), (10, 20, "pages 10\u201320"), (7, 7, "page 7"), (1, 1, "page 1")],
)
def test_what_was_read_of_a_document_is_said(first: int, last: int, said: str) -> None:
    record: Any = SimpleNamespace(first_page=first, last_page=last, n_pages=212, page_kind="page")
    assert words.stretch(record) == said


def test_one_desk_per_data_directory(tmp_path: Path) -> None:
    first, second = DeskLock(tmp_path), DeskLock(tmp_path)
    assert first.take()
    assert not second.take()
    first.announce("http://127.0.0.1:1/?token=x")
    assert announced_url(tmp_path) == "http://127.0.0.1:1/?token=x"
    if sys.platform != "win32":
        assert stat.S_IMODE((tmp_path / "desk.json").stat().st_mode) == 0o600
    first.release()
    assert announced_url(tmp_path) is None
    assert running_desk(tmp_path) is None
    assert second.take()
    second.release()


def test_a_note_left_by_a_dead_desk_is_not_believed(tmp_path: Path) -> None:
    lock = DeskLock(tmp_path)
    lock.take()
    lock.announce("http://127.0.0.1:1/?token=x")
    note = (tmp_path / "desk.json").read_bytes()
    lock.release()
    (tmp_path / "desk.json").write_bytes(note)
    assert running_desk(tmp_path) is None


def test_only_dropped_files_are_discarded(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    uploads.clear()
    inside = uploads.folder / "abc" / "a.pdf"
    inside.parent.mkdir()
    inside.write_bytes(b"x")
    outside = tmp_path / "keep.pdf"
    outside.write_bytes(b"x")
    for path in (str(outside), str(uploads.folder / ".." / "keep.pdf"), None, str(inside)):
        uploads.discard(path)
    assert outside.exists() and not inside.parent.exists()
