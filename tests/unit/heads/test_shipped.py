"""The heads that come with the program: small, with a card, of the right shape, and honest."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.registry import find
from heads.catalog import SHIPPED_HEADS
from heads.retaining import HeadScorer, LocretHead, RetainingHead, load_heads
from tests.bench.standing import READ_ARTICLES, SETS, unread_article

LARGEST_BYTES = 20_000_000
FILES = sorted(SHIPPED_HEADS.glob("*.safetensors"))


def model_of(file: Path) -> Any:
    """Of the model that a file of heads is named after: what loading heads asks of it."""
    spec = find(file.name.split(".retaining")[0])
    assert spec is not None and spec.geometry is not None
    config = SimpleNamespace(hidden_act="silu")
    return SimpleNamespace(
        name=spec.name, geometry=spec.geometry, model=SimpleNamespace(config=config), device="cpu"
    )


def documents_of(card: str) -> set[str]:
    """The documents that a card lists, by the identifiers of `launch.py questions`."""
    return set(re.findall(r"^- ([\w-]+)$", card, re.MULTILINE))


def test_three_models_have_heads() -> None:
    names = [file.name.split(".retaining")[0] for file in FILES]
    assert names == ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "smollm2-135m"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_small_and_its_card_says_what_it_is(file: Path) -> None:
    assert file.stat().st_size < LARGEST_BYTES
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    fields = ("Base model", "Label", "Data", "Licence of the data", "Cost", "On-policy", "Commit")
    for field in fields:
        assert re.search(rf"^- \*\*{field}\*\*: \S", card, re.MULTILINE), field
    assert "the heads are under this repository's licence" in card


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_fits_the_model_it_is_named_after(file: Path) -> None:
    model = model_of(file)
    scorer = load_heads(file, model)
    assert isinstance(scorer, HeadScorer) and isinstance(scorer.head, RetainingHead)
    assert not isinstance(scorer.head, LocretHead)
    assert scorer.card.base_model == model.name
    assert len(scorer.head.w1) == model.geometry.n_layers


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_that_is_measured_on_was_read(file: Path) -> None:
    """Held-out parts by name; the articles of COVID-QA that were read are counted out by name."""
    read = documents_of(file.with_suffix(".md").read_text(encoding="utf-8"))
    assert len(read) > 10
    for name in read:
        kind, _, rest = name.partition("-")
        assert kind not in ("leval", "loogle", "kv"), name
        if kind == "fairytaleqa":
            assert rest.startswith("train-"), name
        if kind == "covidqa":
            assert not unread_article(name), name
    assert SETS["tales"].part == "val" and len(READ_ARTICLES) == 6
