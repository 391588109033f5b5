"""Loading from a folder: what is prepared, what is told apart, and what is refused."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import device, loader, numeric
from engine.configuration import readable
from engine.device import card_problem, fallbacks, pick_device
from engine.errors import InvalidSetting, ModelCorrupt, NotEnoughMemory, UnsupportedArchitecture
from engine.loader import LoadedModel, load_model
from engine.numeric import Choice
from tests.fakes import stock_model, tiny_config

WORDS = ["<unk>", "<s>", "<|endoftext|>", "<|im_end|>", "the", "sea", "was", "calm"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a word tokenizer, saved as a hub folder would be."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("saved") / "tiny"
    stock_model(tiny_config(pad_token_id=2)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|endoftext|>",
        additional_special_tokens=["<|im_end|>"],
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def load(folder: Path, weights: str = "fp32") -> LoadedModel:
    return load_model(
        str(folder), models_dir=folder.parent / "models", weights=weights, device="cpu"
    )


def test_a_loaded_model_is_ready_and_frozen(folder: Path) -> None:
    loaded = load(folder)
    assert loaded.name == "tiny" and loaded.device == "cpu" and loaded.load_s > 0
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.geometry.n_layers == 2 and loaded.rotary.rotary_dim == 12
    assert loaded.stop_token_ids == {2, 3}, "eos, and the end of a chat turn"


@pytest.mark.parametrize(("weights", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_are_held_in_the_compute_format(
    folder: Path, weights: str, dtype: torch.dtype
) -> None:
    loaded = load(folder, weights)
    assert loaded.weights == weights and loaded.compute_dtype == dtype
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}


def test_auto_takes_the_format_remembered_for_this_machine(folder: Path) -> None:
    file = folder.parent / "models" / numeric.CACHE_NAME
    file.parent.mkdir()
    choice: Any = {"name": "bf16", "gflops": {}, "reason": "bf16 reads faster here."}
    choice["packed"] = False
    file.write_text(json.dumps({numeric.machine_key(): choice}))
    loaded = load(folder, "auto")
    assert loaded.weights == "bf16" and loaded.weights_reason == Choice(**choice).reason


def test_the_fingerprint_names_what_changed(folder: Path) -> None:
    before = load(folder).fingerprint
    assert set(before) == {"weights", "config", "rotary", "tokenizer", "chat_template"}
    assert load(folder).fingerprint == before
    differs = {
        key for key, value in load(folder, "bf16").fingerprint.items() if value != before[key]
    }
    assert differs == {"weights"}

    config = json.loads((folder / "config.json").read_text())
    config["transformers_version"] = "0.0.0"
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).fingerprint == before, "which library wrote a file changes nothing"

    config["rope_parameters"]["rope_theta"] = 123.0
    (folder / "config.json").write_text(json.dumps(config))
    after = load(folder).fingerprint
    assert {key for key in after if after[key] != before[key]} == {"config", "rotary"}


def test_changed_weights_change_the_fingerprint(folder: Path) -> None:
    before = load(folder).fingerprint["weights"]
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(folder).fingerprint["weights"] != before


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelCorrupt, match=r"layers\.1\.mlp\.up_proj"):
        load(folder)


@pytest.mark.parametrize("damage", ["weights", "config", "tokenizer"])
def test_a_damaged_file_is_a_corrupt_model(folder: Path, damage: str) -> None:
    name = {"weights": "model.safetensors", "config": "config.json", "tokenizer": "tokenizer.json"}
    file = folder / name[damage]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ModelCorrupt) as caught:
        load(folder)
    assert "\n" not in caught.value.cause


NONSENSE: list[dict[str, Any]] = [
    {"num_attention_heads": 0},
    {"num_key_value_heads": 0},
    {"num_hidden_layers": -1},
    {"num_hidden_layers": 0},
    {"head_dim": -4},
    {"vocab_size": 0},
    {"hidden_size": "abc"},
    {"max_position_embeddings": None},
    {"rope_parameters": "abc"},
    {"dtype": "nope"},
    {"hidden_act": 5},
]


@pytest.mark.parametrize("changes", NONSENSE, ids=str)
def test_a_configuration_that_makes_no_sense_is_a_corrupt_model(
    folder: Path, changes: dict[str, Any]
) -> None:
    change_config(folder, **changes)
    with pytest.raises(ModelCorrupt) as caught:
        load(folder)
    assert str(folder) in caught.value.cause and "\n" not in caught.value.cause


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[]"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"version": "1.0", "added_tokens": [], "model": {"type": "Nope"}}'),
    ],
)
def test_a_file_of_the_wrong_kind_is_a_corrupt_model(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ModelCorrupt, match="config" if name == "config.json" else "tokenizer"):
        load(folder)


@pytest.mark.parametrize(
    "problem", [OSError(errno.ENOSPC, "No space left on device"), MemoryError()], ids=repr
)
def test_a_machine_that_is_full_is_not_a_damaged_file(problem: Exception, folder: Path) -> None:
    with pytest.raises(type(problem)), readable(folder, "config.json"):
        raise problem


def test_layers_that_the_configuration_leaves_out_are_not_passed_over(folder: Path) -> None:
    change_config(folder, num_hidden_layers=1)
    with pytest.raises(ModelCorrupt, match=r"no place for, model\.layers\.1\."):
        load(folder)


@pytest.mark.parametrize("name", ["self_attn.q_proj.bias", "self_attn.q_norm.weight"])
def test_a_part_of_a_layer_that_would_be_left_out_is_refused(folder: Path, name: str) -> None:
    add_weights(folder, **{f"model.layers.0.{name}": torch.ones(48)})
    with pytest.raises(ModelCorrupt, match=name):
        load(folder)


def test_what_real_files_carry_beside_the_layers_does_no_harm(folder: Path) -> None:
    before = load(folder).model.state_dict()
    add_weights(
        folder,
        **{
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
            "model.layers.0.self_attn.k_scale": torch.ones(1),
            "model.rotary_emb.inv_freq": torch.ones(6),
            "mtp.layers.0.self_attn.q_proj.weight": torch.ones(48, 48),
            "score.weight": torch.ones(2, 48),
        },
    )
    after = load(folder).model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_output_matrix_that_is_stored_twice_does_no_harm(folder: Path) -> None:
    tied = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_config(folder, tie_word_embeddings=True)
    add_weights(folder, **{"lm_head.weight": tied.clone()})
    assert load(folder).geometry.n_layers == 2


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def add_weights(folder: Path, **more: torch.Tensor) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), **more}, file, metadata={"format": "pt"})


def test_an_architecture_is_refused_before_its_weights_are_read(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    (folder / "model.safetensors").write_bytes(b"never opened")
    with pytest.raises(UnsupportedArchitecture, match="mamba"):
        load(folder)


def test_too_little_memory_is_noticed_before_loading(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.memory, "available_memory", lambda device: 1000)
    with pytest.raises(NotEnoughMemory, match="fp32"):
        load(folder)


def test_devices_and_formats_are_checked_first(folder: Path) -> None:
    with pytest.raises(InvalidSetting, match="fp16"):
        load(folder, "fp16")
    with pytest.raises(InvalidSetting, match="tpu"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        assert pick_device("auto") == "cpu"
        with pytest.raises(InvalidSetting, match="GPU"):
            pick_device("cuda")


def test_a_card_that_torch_sees_and_cannot_compute_on_is_left_alone_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GTX 10xx under a torch built for newer cards: there it is, and no kernel runs on it."""

    def no_kernel(*given: Any, **named: Any) -> Any:
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", no_kernel)
    card_problem.cache_clear()
    try:
        assert pick_device("auto") == "cpu"
        assert "no kernel image" in fallbacks("auto", "cpu")[0] and fallbacks("cpu", "cpu") == []
        with pytest.raises(InvalidSetting, match="no kernel image is available"):
            pick_device("cuda")
    finally:
        card_problem.cache_clear()


def test_a_card_that_is_full_is_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", full)
    card_problem.cache_clear()
    try:
        assert pick_device("auto") == "cuda"
    finally:
        card_problem.cache_clear()


def test_plain_kernels_on_a_card_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "reference: plain torch attention: Triton does not compile for compute capability 7.5"
    monkeypatch.setattr(device.kernels, "describe", lambda kind: reason)
    assert fallbacks("auto", "cuda") == [f"Kernels: {reason}."]
    monkeypatch.setattr(device.kernels, "describe", lambda kind: "triton: fused")
    assert fallbacks("auto", "cuda") == []


@pytest.mark.parametrize(
    ("problem", "expected"),
    [(RuntimeError("conversion failed"), InvalidSetting), (OSError("cut off"), ModelCorrupt)],
)
def test_what_fails_while_a_card_packs_is_told_from_a_damaged_file(
    problem: Exception, expected: type[Exception], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def fail(*given: Any, **named: Any) -> Any:
        raise problem

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    choice = loader.WeightChoice("nf4", "bf16", "")
    with pytest.raises(expected, match=str(problem)):
        loader._read_weights(folder, None, choice, "cuda")
