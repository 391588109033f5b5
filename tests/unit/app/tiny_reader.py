"""A Reader around a tiny random model and a byte tokenizer: real reading in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from app.library import Library
from app.paths import data_paths
from app.service import Reader
from app.settings import ReadSettings
from tests.fakes import TinyModel, tiny_model
from tests.unit.app.byte_tokenizers import byte_tokenizer

SETTINGS = ReadSettings(
    model="tiny", budget_tokens=400, scorer="keydiff", allocation="uniform", chunk_tokens=128
)
LINES = (f"Chapter {n}. Traveller {n} met {n * 31} wolves by the sea." for n in range(60))
BOOK = "\n".join(LINES)


@dataclass
class TinyLoaded(TinyModel):
    """A TinyModel with what the application asks of a loaded model besides."""

    tokenizer: Any = None
    load_s: float = 0.25


@cache
def tiny_loaded() -> TinyLoaded:
    """One tiny model for all tests."""
    tokenizer = byte_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    return TinyLoaded(**vars(model), tokenizer=tokenizer)


def use_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every name load the tiny model, on a machine whose speed is known."""
    from engine.numeric import Choice

    speed = Choice("fp32", {"prefill_fp32": 50.0, "prefill_bf16": 20.0}, "said by the test")
    answers = Choice("int8", {"answer_int8": 50.0, "answer_fp16": 20.0}, "said by the test")
    monkeypatch.setattr("engine.loader.load_model", lambda name, **how: tiny_loaded())
    monkeypatch.setattr("engine.numeric.pick_format", lambda cache_file: speed)
    monkeypatch.setattr("engine.decoding.pick_answer_format", lambda cache_file: answers)


def tiny_reader(announced: list[str] | None = None) -> Reader:
    """A reader on the test's data directory."""
    announce = announced.append if announced is not None else None
    return Reader(Library(data_paths()), SETTINGS, announce=announce)
