"""What benchmarks read: a file of the user's, or sentences made on the spot, always the same."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

from engine.errors import InvalidSetting

SEED = 0
_SENTENCES_AT_FIRST = 256


def text_ids(tokenizer: Any, n_tokens: int, file: Path | None) -> list[int]:
    """The first n_tokens of the text.

    file    UTF-8; None: sentences of heads.questions.filler under a fixed seed
    Raises  InvalidSetting if the file cannot be read or is too short
    """
    return (_file_ids(tokenizer, file) if file else _made_ids(tokenizer, n_tokens))[:n_tokens]


def check_length(ids: list[int], n_tokens: int, file: Path | None) -> None:
    """Refuse a text that is shorter than the length asked for."""
    if len(ids) < n_tokens:
        raise InvalidSetting(
            f"{file} has {len(ids)} tokens, and a length of {n_tokens} is asked for.",
            "Name a longer text, or shorter --lengths.",
        )


def _file_ids(tokenizer: Any, file: Path) -> list[int]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise InvalidSetting(
            f"{file} cannot be read as UTF-8 text: {problem}.", "Name another file with --text."
        ) from problem
    return _ids(tokenizer, text)


def _made_ids(tokenizer: Any, n_tokens: int) -> list[int]:
    from heads.questions.filler import built_in_sentences

    n_sentences = _SENTENCES_AT_FIRST
    while True:
        text = "".join(islice(built_in_sentences(random.Random(SEED)), n_sentences))
        ids = _ids(tokenizer, text)
        if len(ids) >= n_tokens:
            return ids
        n_sentences = max(2 * n_sentences, n_sentences * n_tokens // max(len(ids), 1))


def _ids(tokenizer: Any, text: str) -> list[int]:
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )
    return list(encoded["input_ids"])
