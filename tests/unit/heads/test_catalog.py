"""Which scorer reads, where its heads lie, and how published ones become ours."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.errors import InvalidSetting, ModelDownloadFailed, ScorerUnavailable
from heads import catalog
from heads.catalog import (
    default_scorer,
    head_file,
    head_name,
    make_scorer,
    scorer_names,
)
from heads.published import convert, published_heads
from heads.retaining import HeadCard, LocretHead, RetainingHead, load_heads, save_heads
from tests.fakes import tiny_model


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own in place of the heads that come with the program."""
    monkeypatch.setattr(catalog, "SHIPPED_HEADS", tmp_path / "shipped")
    return tmp_path / "shipped"


def put(folder: Path, kind: str = "retaining", seed: int = 0) -> Path:
    model: Any = tiny_model()
    torch.manual_seed(seed)
    head = (RetainingHead if kind == "retaining" else LocretHead)(model.geometry, 4)
    path = folder / head_name(kind, "tiny")
    save_heads(path, head, HeadCard("tiny", data=f"seed {seed}"))
    return path


def test_heads_read_where_there_are_some(shipped: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    assert default_scorer("tiny", own) == default_scorer("tiny") == "keydiff"
    put(own, "locret")
    assert default_scorer("tiny", own) == "keydiff", "Locret's heads are asked for by name"
    put(own)
    assert default_scorer("tiny", own) == "retaining" and default_scorer("tiny") == "keydiff"
    put(shipped)
    assert default_scorer("tiny") == "retaining" and default_scorer("other", own) == "keydiff"


def test_the_users_own_heads_come_before_ours(shipped: Path, tmp_path: Path) -> None:
    model: Any = tiny_model()
    own = tmp_path / "own"
    ours, theirs = put(shipped, seed=1), put(own, seed=2)
    assert head_file("retaining", "tiny", own) == theirs
    assert head_file("retaining", "tiny") == head_file("retaining", "tiny", tmp_path) == ours
    assert head_file("locret", "tiny", own) is None
    scorer: Any = make_scorer("retaining", model, state_dir=own)
    assert scorer.card.data == "seed 2" and scorer.digest() == load_heads(theirs, model).digest()
    assert make_scorer("retaining", model).digest() == load_heads(ours, model).digest()


def test_a_models_name_makes_a_file_name() -> None:
    assert head_name("retaining", "owner/Model 1.5B") == "owner-Model-1.5B.retaining.safetensors"
    assert "/" not in head_name("locret", "../../escape")


def test_a_file_of_heads_is_a_scorers_name(tmp_path: Path) -> None:
    model: Any = tiny_model()
    path = put(tmp_path, "locret")
    scorer = make_scorer(str(path), model)
    assert scorer.name == "locret"
    with pytest.raises(ScorerUnavailable, match="no retaining heads at"):
        make_scorer(str(tmp_path / "none.bin"), model)


def test_a_scorer_that_cannot_be_had_says_what_can(shipped: Path, tmp_path: Path) -> None:
    model: Any = tiny_model()
    with pytest.raises(InvalidSetting, match="no scorer 'none_such'") as odd:
        make_scorer("none_such", model)
    for kind in ("retaining", "locret"):
        with pytest.raises(ScorerUnavailable, match=f"no {kind} heads for the model tiny") as none:
            make_scorer(kind, model, state_dir=tmp_path)
        assert "train-heads tiny" in str(none.value.next_step)
        for name in scorer_names():
            assert name in str(none.value.next_step) and name in str(odd.value.next_step)
    for name in set(scorer_names()) - {"expected_attention"}:
        assert make_scorer(name, model).name == name


# Published heads.


def published_file(path: Path, model: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    table: OrderedDict[str, torch.Tensor] = OrderedDict()
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn"
        table[f"{name}.fc1.weight"] = torch.randn(16, 96).bfloat16()
        table[f"{name}.fc2.weight"] = torch.randn(2, 16).bfloat16()
    torch.save(table, path)
    return table


def test_published_heads_become_a_file_of_ours(tmp_path: Path) -> None:
    model: Any = tiny_model()
    table = published_file(tmp_path / "heads.bin", model)
    path = convert(tmp_path / "heads.bin", model, tmp_path / "ours.safetensors")
    found = load_heads(path, model)
    head = found.head
    assert isinstance(head, LocretHead) and found.card.data == "published"
    for layer in range(2):
        expected = table[f"model.layers.{layer}.self_attn.fc1.weight"].float()
        torch.testing.assert_close(head.fc1[layer], expected, atol=1e-3, rtol=1e-3)
    assert head.activation == "silu"


def test_published_heads_are_fetched_once(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model()
    published_file(tmp_path / "heads.bin", model)
    asked: list[tuple[Any, ...]] = []

    def fetch(*parts: Any) -> Path:
        asked.append(parts)
        return tmp_path / "heads.bin"

    spec = SimpleNamespace(name="tiny", heads="owner/heads")
    monkeypatch.setattr("heads.published.find", lambda name: spec if name == "tiny" else None)
    monkeypatch.setattr("heads.published.fetch_file", fetch)
    folder = tmp_path / "models" / "heads"
    first = make_scorer("locret", model, state_dir=folder)
    assert asked == [("owner/heads", (".bin", ".safetensors"), tmp_path / "models")]
    (tmp_path / "heads.bin").unlink()
    assert make_scorer("locret", model, state_dir=folder).digest() == first.digest()
    assert len(asked) == 1
    assert published_heads(model, None) is None, "without a folder there is nowhere to keep them"


def test_published_heads_out_of_reach_say_so(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model()
    spec = SimpleNamespace(name="tiny", heads="owner/heads")
    monkeypatch.setattr("heads.published.find", lambda name: spec)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelDownloadFailed, match="owner/heads failed: the hub cannot be reached"):
        make_scorer("locret", model, state_dir=tmp_path / "models" / "heads")
