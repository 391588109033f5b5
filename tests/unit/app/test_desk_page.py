"""What the page sends: only what changed, and everything where an answer was lost or overtaken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from app.desk import page as page_module
from app.desk.page import Page
from app.desk.picture import Picture
from app.desk.seat import Seat

PLAN = Picture(place="plan:x", mode="plan", pages=(1, 900), can_read=True)
CHAT = Picture(place="session:y", mode="chat", can_ask=True)


class Tab:
    """A tab without a browser: it lays answers on, in the order given."""

    def __init__(self, page: Page) -> None:
        self.page, self.shown = page, dict[Any, Any]()
        self.request = SimpleNamespace(session_hash="tab")

    def handler(self, component: Any, event: str) -> Callable[..., Any]:
        for known in self.page.blocks.fns.values():
            if (component._id, event) in known.targets:
                found: Callable[..., Any] = known.fn
                return found
        raise AssertionError(event)

    @property
    def seen(self) -> str:
        return str(self.shown.get(self.page.seen, ""))

    def send(self, component: Any, event: str, *given: Any, seen: str | None = None) -> Any:
        number = self.seen if seen is None else seen
        return self.handler(component, event)(self.request, number, *given)

    def lay_on(self, updates: dict[Any, Any]) -> None:
        for component, update in updates.items():
            if component is self.page.chat_group:
                self.shown["chat"] = update.visible
            elif isinstance(update, str):
                self.shown[component] = update
            elif component in (self.page.first, self.page.last):
                self.shown[component] = update.value

    def tick(self, **how: Any) -> None:
        self.lay_on(self.send(self.page.timer, "tick", **how))


@pytest.fixture
def tab(monkeypatch: pytest.MonkeyPatch) -> Tab:
    tab = Tab(Page(MagicMock(), MagicMock(), version="0"))
    tab.shown["picture"] = PLAN

    def look(seat: Seat) -> Picture:
        found: Picture = replace(tab.shown["picture"], confirm=seat.confirm, notice=seat.note)
        return found

    monkeypatch.setattr(Seat, "look", look)
    return tab


def test_what_has_not_changed_is_not_sent(tab: Tab) -> None:
    tab.tick()
    assert tab.seen == "1" and tab.shown["chat"] is False
    assert set(tab.send(tab.page.timer, "tick")) == {tab.page.timer}


@pytest.mark.parametrize("overtaken", [False, True])
def test_a_reply_that_was_lost_or_overtaken_is_made_good(tab: Tab, overtaken: bool) -> None:
    tab.tick()
    early = tab.send(tab.page.ask_delete, "click")
    tab.shown["picture"] = CHAT
    lost = tab.send(tab.page.keep, "click")
    if overtaken:
        tab.tick()
        tab.lay_on(lost)
        tab.lay_on(early)
    else:
        tab.lay_on(tab.send(tab.page.keep, "click"))
    tab.tick()
    assert tab.shown["chat"] is True and tab.shown[tab.page.place] == "session:y"


def test_typed_pages_stay_when_everything_is_sent_again(tab: Tab) -> None:
    tab.tick()
    before = tab.seen
    tab.lay_on(tab.send(tab.page.ask_delete, "click"))
    tab.shown |= {tab.page.first: "10", tab.page.last: "9999"}
    tab.tick(seen=before)
    assert (tab.shown[tab.page.first], tab.shown[tab.page.last]) == ("10", "9999")
    tab.shown["picture"] = replace(PLAN, place="plan:other", pages=(3, 4))
    tab.tick()
    assert (tab.shown[tab.page.first], tab.shown[tab.page.last]) == ("3", "4")


def test_pages_that_never_arrived_are_sent_again(tab: Tab) -> None:
    tab.send(tab.page.timer, "tick")
    tab.tick()
    assert (tab.shown[tab.page.first], tab.shown[tab.page.last]) == ("1", "900")


def test_the_spare_timer_looks_only_where_the_first_has_fallen_silent(
    tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(page_module.time, "monotonic", lambda: now)
    tab.tick()
    tab.shown["picture"] = CHAT
    assert set(tab.send(tab.page.spare_timer, "tick")) == {tab.page.timer}
    now += page_module.SPARE_TICK_S
    for _ in range(2):
        tab.lay_on(tab.send(tab.page.spare_timer, "tick"))
        assert tab.shown["chat"] is True
        now += page_module.SPARE_TICK_S
        tab.shown |= {"chat": False, "picture": replace(CHAT, can_ask=not tab.shown["chat"])}
        tab.shown[tab.page.seen] = "0"
