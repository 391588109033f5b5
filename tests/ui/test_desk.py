"""The desk as a person uses it, in a real browser, with a fake worker behind it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ui.conftest import TIMEOUT_S, Running, Tab
from tests.ui.fake_worker import DOUBT

if TYPE_CHECKING:
    from playwright.sync_api import APIResponse, Browser, Route

pytestmark = pytest.mark.ui

CHAT = "#question textarea:visible"


def until(condition: Callable[[], bool], what: str, seconds: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.05)


def tokens_done(tab: Tab) -> int:
    card = tab.page.query_selector("#card")  # it is gone once the reading has ended
    match = re.search(r"([\d,]+) of [\d,]+ tokens", card.text_content() or "") if card else None
    return int(match.group(1).replace(",", "")) if match else 0


def read_to_the_end(tab: Tab, pdf: Path) -> None:
    tab.drop(pdf)
    tab.page.click("#read")
    tab.page.wait_for_selector(CHAT)


def test_a_dropped_file_is_planned_read_with_progress_and_asked(
    tab: Tab, running: Running, pdf: Path
) -> None:
    page = tab.page
    tab.drop(pdf)
    page.wait_for_selector("#read:visible")
    plan = tab.text("#card")
    for fact in ("A Voyage in Chapters", "212", "40,960", "384 MiB", "48 MiB", "162 MiB"):
        assert fact in plan
    assert "about 42 seconds" in plan and "Page 7 is a picture" in plan

    page.click("#read")
    page.wait_for_selector("#cancel:visible")
    seen: list[int] = []
    while page.is_visible("#card") and not page.is_visible(CHAT):
        seen.append(tokens_done(tab))
        time.sleep(0.05)
    assert len(set(seen)) >= 3 and seen[:-1] == sorted(seen[:-1])

    page.wait_for_selector(CHAT)
    assert "40,960 tokens" in tab.text("#head")
    assert tab.text("#head .lr-warnings") == DOUBT, "why to doubt what was read"
    tab.ask("What is the ship called?")
    page.wait_for_selector("#stop:visible")
    lengths: set[int] = set()
    while not page.locator("#messages details").count():
        lengths.add(len(tab.text("#messages")))
        time.sleep(0.05)
    assert len(lengths) >= 3, "the answer did not stream"
    page.wait_for_selector("#messages details")
    shown = tab.text("#messages")
    assert "What is the ship called?" in shown and "sails from Nantucket" in shown
    assert "\u2713 p. 3" in shown and "p. ix (page 9 of the file) \u00b7 not verified" in shown
    assert "<b>Markup</b> and ![pictures](http://evil.test/x.png)" in shown
    assert page.locator("#messages img").count() == 0
    page.click("#messages summary")
    assert "The Pequod sailed." in tab.text("#messages details")
    until(lambda: not list((running.data_dir / "uploads").rglob("*.pdf")), "temporary copy deleted")


def test_cancel_stops_the_reading_and_it_can_be_continued(
    tab: Tab, running: Running, pdf: Path
) -> None:
    page = tab.page
    running.worker.pace = 3.0
    tab.drop(pdf)
    page.click("#read")
    until(lambda: tokens_done(tab) > 2000, "progress")
    page.click("#cancel")
    page.wait_for_selector("#resume:visible")
    assert "What has been read is kept" in tab.text("#notice")
    assert "not read to the end" in tab.text("#sessions")
    assert page.is_disabled("#ask")
    running.worker.pace = 1.0
    page.click("#resume")
    until(lambda: page.is_enabled("#ask") and page.is_visible(CHAT), "read to the end")


def test_a_reload_in_the_middle_of_reading_and_of_an_answer_loses_nothing(
    tab: Tab, running: Running, pdf: Path
) -> None:
    page = tab.page
    running.worker.pace = 4.0
    tab.drop(pdf)
    page.click("#read")
    until(lambda: tokens_done(tab) > 2000, "progress")
    before = tokens_done(tab)
    page.reload()
    until(lambda: tokens_done(tab) >= before, "progress after the reload")
    running.worker.pace = 1.0
    assert sum(job.kind == "ingest" for job in running.worker.jobs()) == 1
    page.wait_for_selector(CHAT)

    running.worker.pace = 2.0
    tab.ask("What is the ship called?")
    until(lambda: "Pequod" in tab.text("#messages"), "the answer began")
    page.reload()
    page.wait_for_selector("#messages details")
    assert "are text." in tab.text("#messages")
    assert sum(job.kind == "question" for job in running.worker.jobs()) == 1


def test_a_new_tab_finds_the_running_reading(
    tab: Tab, browser: Browser, running: Running, pdf: Path
) -> None:
    running.worker.pace = 5.0
    tab.drop(pdf)
    tab.page.click("#read")
    until(lambda: tokens_done(tab) > 0, "progress")
    other = Tab(tab.page.context.new_page())
    other.page.goto(running.origin)
    until(lambda: tokens_done(other) > 0, "progress in the other tab")
    running.worker.pace = 0.5
    other.page.wait_for_selector(CHAT)
    assert sum(job.kind == "ingest" for job in running.worker.jobs()) == 1
    other.check()


def test_stop_ends_the_answer(tab: Tab, running: Running, pdf: Path) -> None:
    page = tab.page
    read_to_the_end(tab, pdf)
    tab.ask("What is the ship called?")
    until(lambda: "Pequod" in tab.text("#messages"), "the answer began")
    page.click("#stop")
    until(lambda: "Stopped here." in tab.text("#messages"), "stopped")
    assert "are text." not in tab.text("#messages")
    assert page.is_visible("#ask") and not running.worker.jobs(active=True)
    tab.ask("And its captain?")
    until(lambda: "Pequod" in tab.text("#messages .bot-row >> nth=1"), "the next answer")
    page.press("#question textarea", "Escape")
    until(lambda: tab.text("#messages").count("Stopped here.") == 2, "stopped by Escape")


def test_a_session_is_there_after_a_restart_and_can_be_deleted(
    tab: Tab, running: Running, pdf: Path
) -> None:
    page = tab.page
    read_to_the_end(tab, pdf)
    tab.ask("What is the ship called?")
    page.wait_for_selector("#messages details")
    page.goto("about:blank")
    running.stop()
    running.start()
    page.goto(running.url)
    page.wait_for_selector("#sessions label")
    assert "1 question" in tab.text("#sessions")
    page.focus("#sessions input")
    page.keyboard.press("Space")
    page.wait_for_selector("#messages details")
    assert "sails from Nantucket" in tab.text("#messages")

    page.click("#ask-delete")
    page.click("#keep")
    page.wait_for_selector("#confirm", state="hidden")
    page.click("#ask-delete")
    page.click("#delete")
    page.wait_for_selector("#drop:visible")
    page.wait_for_selector("#sessions", state="hidden")
    assert running.worker.sessions() == []


def test_an_answer_that_comes_late_does_not_leave_an_old_picture(tab: Tab, pdf: Path) -> None:
    """The reply to a click is held back until later ones have shown the end of the reading."""
    page = tab.page
    tab.drop(pdf)
    page.wait_for_selector("#read:visible")
    page.wait_for_timeout(500)
    held: list[tuple[Route, APIResponse]] = []

    def hold_first(route: Route) -> None:
        data = json.loads(route.request.post_data or "{}")
        if not held and len(data["data"]) == 3:  # what was seen, and the two pages of `read`
            held.append((route, route.fetch()))
        else:
            route.continue_()

    page.route("**/run/predict*", hold_first)
    page.click("#read")
    page.wait_for_selector(CHAT)
    route, reply = held[0]
    route.fulfill(response=reply)
    page.wait_for_timeout(500)
    page.wait_for_selector(CHAT)
    assert not page.is_visible("#card")
    page.unroute_all()


def test_a_look_that_is_never_answered_does_not_freeze_the_page(tab: Tab, pdf: Path) -> None:
    """A timer waits for its answer before it asks again; one that is lost must not end all."""
    page = tab.page
    tab.drop(pdf)
    page.wait_for_selector("#read:visible")
    lost: list[Route] = []

    def lose_one(route: Route) -> None:
        data = json.loads(route.request.post_data or "{}")
        if not lost and len(data["data"]) == 1:  # what was seen: the timer's question
            lost.append(route)
        else:
            route.continue_()

    page.route("**/run/predict*", lose_one)
    until(lambda: bool(page.wait_for_timeout(50) or lost), "the timer asks")
    page.click("#read")
    page.wait_for_selector(CHAT)
    assert len(lost) == 1 and not page.is_visible("#card"), "the reading is over and seen to be"
    page.unroute_all(behavior="ignoreErrors")


def test_a_locked_document_asks_for_its_password(tab: Tab, tmp_path: Path) -> None:
    page = tab.page
    locked = tmp_path / "locked.pdf"
    locked.write_bytes(b"%PDF-1.4 /Encrypt")
    tab.drop(locked)
    page.wait_for_selector("#password input:visible")
    assert page.get_attribute("#password input", "type") == "password"
    assert "protected by a password" in tab.text("#notice")
    assert "--password" not in tab.text("body")
    page.fill("#password input", "guess")
    page.press("#password input", "Enter")
    until(lambda: "does not open" in tab.text("#notice"), "the wrong password is told")
    assert page.input_value("#password input") == ""
    page.fill("#password input", "sesame")
    page.click("#unlock")
    page.click("#read")
    page.wait_for_selector(CHAT)


def test_a_broken_file_is_one_plain_sentence(tab: Tab, tmp_path: Path, pdf: Path) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"BROKEN")
    tab.drop(broken)
    tab.page.wait_for_selector("#notice [role=alert]")
    assert tab.text("#notice").strip() == "The file is damaged. Try another copy of it."
    tab.drop(pdf)
    tab.page.wait_for_selector("#read:visible")
    assert not tab.page.is_visible("#notice")


def test_too_long_offers_a_page_range(tab: Tab, tmp_path: Path) -> None:
    page = tab.page
    huge = tmp_path / "huge.pdf"
    huge.write_bytes(b"HUGE")
    tab.drop(huge)
    page.wait_for_selector("#read:visible")
    assert "Too long" in tab.text("#card")
    assert page.is_disabled("#read")
    assert page.input_value("#last-page input, #last-page textarea") == "69"
    page.fill("#last-page input, #last-page textarea", "400")
    page.click("#replan")
    page.wait_for_selector("#notice [role=alert]")
    page.fill("#last-page input, #last-page textarea", "60")
    page.click("#replan")
    until(lambda: page.is_enabled("#read"), "it fits now")
    assert "1\u201360 of 212" in tab.text("#card")


def test_the_main_way_works_by_keyboard_alone(tab: Tab, pdf: Path) -> None:
    page = tab.page
    page.wait_for_selector("#file input[type=file]", state="attached")
    with page.expect_file_chooser() as chooser:
        page.focus("#file button")
        page.keyboard.press("Enter")
    chooser.value.set_files(str(pdf))
    page.wait_for_selector("#read:visible")
    page.focus("#first-page input, #first-page textarea")
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "read"
    page.keyboard.press("Enter")
    page.wait_for_selector(CHAT)


DROP = """([selector, names]) => {
    const transfer = new DataTransfer();
    for (const name of names) {
        transfer.items.add(new File(["%PDF-1.4"], name, {type: "application/pdf"}));
    }
    const event = new DragEvent("drop",
        {dataTransfer: transfer, bubbles: true, cancelable: true});
    document.querySelector(selector).dispatchEvent(event);
    return event.defaultPrevented;
}"""


def test_a_file_dropped_beside_the_drop_area_does_not_replace_the_page(tab: Tab) -> None:
    page = tab.page
    page.wait_for_selector("#file input[type=file]", state="attached")
    assert page.evaluate(DROP, ["#brand", ["voyage.pdf"]]) is True
    page.wait_for_selector("#read:visible")


def test_a_file_dropped_on_a_conversation_is_opened(tab: Tab, running: Running, pdf: Path) -> None:
    page = tab.page
    read_to_the_end(tab, pdf)
    assert page.evaluate(DROP, ["#messages", ["other.pdf"]]) is True
    page.wait_for_selector("#read:visible")
    assert running.worker.opened[-1].endswith("other.pdf")


@pytest.mark.parametrize("place", ["#brand", "#file"])
def test_of_several_dropped_files_one_is_opened_and_this_is_said(
    place: str, tab: Tab, running: Running
) -> None:
    page = tab.page
    page.wait_for_selector("#file input[type=file]", state="attached")
    page.evaluate(DROP, [place, ["first.pdf", "second.pdf"]])
    page.wait_for_selector("#read:visible")
    assert running.worker.opened[-1].endswith("first.pdf")
    said = "One document at a time: first.pdf is opened."
    assert tab.text("#dropped").strip() == said
    page.click("#new")
    page.wait_for_selector("#dropped", state="hidden")


def test_the_guard_stands_before_gradio(tab: Tab, running: Running, browser: Browser) -> None:
    import httpx

    upload = f"{running.origin}/gradio_api/upload"
    file = {"files": ("a.pdf", b"x", "application/pdf")}
    cookies = {c["name"]: c["value"] for c in tab.page.context.cookies()}
    with httpx.Client(trust_env=False) as client:
        assert client.get(running.origin).status_code == 403
        assert client.post(upload, files=file).status_code == 403
    with httpx.Client(trust_env=False, cookies=cookies) as client:
        page = client.get(running.origin)
        assert (
            page.status_code == 200 and "frame-ancestors" in page.headers["content-security-policy"]
        )
        for foreign in (
            {"Host": "evil.example"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://localhost:1"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            assert client.post(upload, files=file, headers=foreign).status_code == 403
        assert client.post(upload, files=file).status_code == 200
        for closed in ("/docs", "/redoc", "/openapi.json", "/gradio_api/docs"):
            assert client.get(running.origin + closed).status_code == 404
        assert "Affero" in client.get(f"{running.origin}/source").text
    stranger = browser.new_context()
    answer = stranger.new_page().goto(running.origin)
    assert answer is not None and answer.status == 403
    stranger.close()


def test_the_cookie_is_out_of_reach_and_the_token_gone_from_the_address(
    tab: Tab, running: Running
) -> None:
    assert tab.page.url == f"{running.origin}/"
    assert tab.page.evaluate("document.cookie") == ""
    (cookie,) = tab.page.context.cookies()
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"


def test_the_policy_blocks_what_a_page_would_send_outside(tab: Tab) -> None:
    blocked = tab.page.evaluate(
        """() => fetch("http://127.0.0.1:9/leak").then(() => "sent", () => "blocked")"""
    )
    assert blocked == "blocked"
    assert any("Content Security Policy" in error for error in tab.errors)
    tab.errors.clear()


def test_a_second_start_finds_the_first(running: Running) -> None:
    from app.desk.server import serve

    told: list[str] = []
    serve(running.worker, open_browser=False, ready=told.append, data_dir=running.data_dir)
    assert told == [running.url]
