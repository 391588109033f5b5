"""Threads beside other programs: fewer where cores are taken, as before once they are free."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.service import Reader
from app.sharing import REMEMBERED_S, Cores, ThreadShare, Usage, both, others_share, suited
from tests.unit.app.tiny_reader import use_tiny_model

MOST = 4


class ScriptedCores(Cores):
    """Four cores, of which others take as many as the script says, a number for each second."""

    def __init__(self, *others: float) -> None:
        self.n_cores = 4
        self._script = list(others)
        self._busy = self._at = 0.0

    def usage(self) -> Usage:
        """One second later."""
        if self._at and self._script:
            self._busy += self._script.pop(0)
        self._at += 1.0
        own = 2.0 * self._at
        return Usage(self._at, self._busy + own, own)


@pytest.fixture(autouse=True)
def _four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(MOST)
    yield
    torch.set_num_threads(before)


@given(most=st.integers(1, 64), n=st.integers(1, 64), others=st.floats(0, 100))
def test_at_least_one_at_most_all_and_never_more_than_are_free(
    most: int, n: int, others: float
) -> None:
    threads = suited(most, n, others)
    assert 1 <= threads <= most
    assert threads == 1 or threads <= n - others + 0.5
    assert threads == most or threads > n - others - 0.5


@pytest.mark.parametrize(
    ("most", "n_cores", "others", "threads"),
    [(2, 2, 0.2, 2), (2, 2, 1.0, 1), (2, 2, 2.0, 1), (8, 16, 3.0, 8), (8, 16, 12.0, 4)],
)
def test_cores_that_are_left_over_are_used(
    most: int, n_cores: int, others: float, threads: int
) -> None:
    assert suited(most, n_cores, others) == threads


def test_what_we_take_ourselves_is_not_taken_by_others() -> None:
    assert others_share(Usage(1.0, 10.0, 9.0), Usage(3.0, 15.0, 13.0)) == pytest.approx(0.5)
    assert others_share(Usage(1.0, 10.0, 9.0), Usage(3.0, 13.0, 13.0)) == 0.0  # clocks are coarse
    assert others_share(Usage(1.0, 10.0, 9.0), Usage(1.0, 11.0, 9.0)) == 0.0


def test_threads_follow_what_others_take_and_are_given_back() -> None:
    said: list[str] = []
    share = ThreadShare(said.append, ScriptedCores(0.1, 0.1, 2.0, 3.9, 2.0, 0.0))
    seen = []
    with share.computing() as look:
        for _ in range(5):
            look()
            seen.append(torch.get_num_threads())
    assert seen == [4, 2, 1, 2, 4]
    assert torch.get_num_threads() == MOST
    assert len(said) == 2 and "2 of 4 threads" in said[0] and "1 of 4 threads" in said[1]


def test_they_are_given_back_when_the_computing_fails() -> None:
    share = ThreadShare(lambda text: None, ScriptedCores(0.0, 3.0))
    with pytest.raises(RuntimeError), share.computing() as look:
        look()
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == MOST


def test_it_begins_with_what_the_time_before_says_if_that_is_not_long_ago() -> None:
    cores = ScriptedCores(3.0, 2.0, 2.0)
    share = ThreadShare(lambda text: None, cores)
    with share.computing():  # three were busy while the model was loaded
        assert torch.get_num_threads() == 1
    with share.computing():
        assert torch.get_num_threads() == 2
    cores._at += REMEMBERED_S
    with share.computing():
        assert torch.get_num_threads() == MOST


def test_after_a_pause_it_begins_with_what_the_loading_of_the_model_says() -> None:
    cores = ScriptedCores(0.0, 3.0, 0.0, 2.0)
    share = ThreadShare(lambda text: None, cores)
    cores._at += REMEMBERED_S
    share.notice()
    with share.computing():  # three were busy since
        assert torch.get_num_threads() == 1
    share.notice()  # the last look is remembered, and stands
    with share.computing():
        assert torch.get_num_threads() == 3


def test_a_model_is_loaded_after_a_look(
    reader: Reader, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_model(monkeypatch)
    share = ThreadShare(reader.announce, ScriptedCores(*[0.0] * 1000))
    looks: list[str] = []
    monkeypatch.setattr(share, "notice", lambda: looks.append("look"))
    load = reader._model.get
    monkeypatch.setattr(reader._model, "get", lambda *a, **k: looks.append("load") or load(*a, **k))
    monkeypatch.setattr(reader, "_share", share)
    reader.open(book)
    assert looks[:2] == ["look", "load"]


def test_a_chunk_may_take_longer_than_a_look_is_remembered() -> None:
    class Slow(ScriptedCores):
        def usage(self) -> Usage:
            found = super().usage()
            scale = 2 * REMEMBERED_S
            return Usage(scale * found.at_s, scale * found.busy_s, scale * found.own_s)

    with ThreadShare(lambda text: None, Slow(3.0, 3.0)).computing() as look:
        assert torch.get_num_threads() == MOST  # nothing is known of the last minute
        look()
        assert torch.get_num_threads() == 1


def test_a_model_on_a_card_leaves_threads_as_they_are(reader: Reader) -> None:
    on_card: Any = SimpleNamespace(device="cuda")
    reader._share = ThreadShare(lambda text: None, ScriptedCores(*[3.0] * 9))
    with reader._sharing(on_card) as look:
        look()
        assert torch.get_num_threads() == MOST


def test_of_the_moment_before_nothing_is_concluded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.sharing.LOOK_EVERY_S", 1.5)  # more than a scripted second
    share = ThreadShare(lambda text: None, ScriptedCores(3.0, 3.0))
    with share.computing():
        assert torch.get_num_threads() == MOST


def test_the_machine_is_not_looked_at_for_every_token() -> None:
    class Counted(Cores):
        looks = 0

        def usage(self) -> Usage:
            Counted.looks += 1
            return super().usage()

    with ThreadShare(lambda text: None, Counted()).computing() as look:
        for _ in range(1000):
            look()
    assert Counted.looks <= 3


def test_a_busy_program_is_seen() -> None:
    cores = Cores()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        before = cores.usage()
        time.sleep(1.0)
        assert others_share(before, cores.usage()) > 0.3
    finally:
        busy.kill()
        busy.wait()


def test_reading_and_answering_look_at_it(
    reader: Reader, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_model(monkeypatch)
    looks: list[int] = []

    class Seen(ScriptedCores):
        def usage(self) -> Usage:
            looks.append(1)
            return super().usage()

    monkeypatch.setattr(reader, "_share", ThreadShare(reader.announce, Seen(*[3.0] * 1000)))
    session = reader.open(book)
    read = len(looks)
    assert read > 3
    answer = reader.ask(session, "Who?")
    assert len(looks) - read >= answer.new_tokens
    assert torch.get_num_threads() == MOST


def test_both_are_called_in_their_order() -> None:
    calls: list[object] = []
    both(lambda *given: calls.append(given), lambda: calls.append("look"))("read", 1, 2)
    assert calls == [("read", 1, 2), "look"]
