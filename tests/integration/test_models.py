"""The real models: fetched, converted faithfully, quick to load, and sensible in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.batch import nll_together
from engine.eviction import EvictionConfig
from engine.fetch import is_fetched, model_file
from engine.gguf import converted_dir, is_complete
from engine.loader import LoadedModel, load_model
from engine.prefill import PrefillConfig, prefill
from engine.registry import ModelSpec, find, known_models
from engine.sources import CONVERTED, state
from heads.catalog import make_scorer

pytestmark = pytest.mark.weights

AWKWARD = "Hello world,  it's 1234\n\n\tfoo   bar é 漢字 🙂 <|im_start|>x<|im_end|>"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CITIES = ("London", "Paris", "Madrid", "Rome")
# The 1.5B model is a gigabyte to fetch: only where it is already.
SMALL = ["smollm2-135m", "qwen2.5-coder-0.5b"]


def spec_of(name: str) -> ModelSpec:
    spec = find(name)
    assert spec is not None
    return spec


@pytest.fixture(scope="module", params=SMALL)
def loaded(request: pytest.FixtureRequest, models_dir: Path) -> LoadedModel:
    return load_model(request.param, models_dir=models_dir, weights="fp32", device="cpu")


def prompt_ids(model: LoadedModel) -> list[int]:
    text = model.tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def likeliest(model: LoadedModel, cities: tuple[str, ...] = CITIES) -> str:
    """The city that the model takes for the capital of France.

    What a small model says in so many words hangs on how a processor rounds; this does not.
    """
    ids = prompt_ids(model)
    config = PrefillConfig(64, EvictionConfig(budget_tokens=None))
    cache = prefill(model, ids[:-4], config, make_scorer("keydiff", model))
    answers = [
        model.tokenizer(f"The capital of France is {city}.", add_special_tokens=False)["input_ids"]
        for city in cities
    ]
    views = [cache.view() for _ in cities]
    lost = nll_together(model, views, [ids[-4:]] * len(cities), answers)
    return min(zip(lost, cities, strict=True))[1]


def test_a_model_loads_as_the_registry_says(loaded: LoadedModel) -> None:
    spec = spec_of(loaded.name)
    assert loaded.geometry == spec.geometry
    assert loaded.fingerprint["weights"] == f"fp32:{spec.sha256}"


def test_the_converted_tokenizer_is_lossless_and_ends_turns(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    ids = tokenizer(AWKWARD, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == AWKWARD
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>"), "one token, not its letters"
    assert loaded.stop_token_ids >= {ids[-1]} and tokenizer.eos_token == "<|im_end|>"
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_converted_weights_are_the_files_own(models_dir: Path) -> None:
    from gguf import GGUFReader, dequantize
    from safetensors import safe_open

    load_model("smollm2-135m", models_dir=models_dir, weights="bf16", device="cpu")
    spec = spec_of("smollm2-135m")
    folder = converted_dir(models_dir / CONVERTED, spec.sha256)
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.7.ffn_up.weight": "model.layers.7.mlp.up_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    blocks = {tensor.name: tensor for tensor in GGUFReader(model_file(spec, models_dir)).tensors}
    with safe_open(folder / "model.safetensors", framework="pt") as plain:
        assert "lm_head.weight" not in plain.keys()  # noqa: SIM118 - not a mapping
        for theirs, ours in pairs.items():
            source = torch.tensor(dequantize(blocks[theirs].data, blocks[theirs].tensor_type))
            assert torch.equal(plain.get_tensor(ours), source.bfloat16()), ours
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config


def test_a_second_load_neither_converts_nor_asks_the_network(models_dir: Path) -> None:
    load_model("smollm2-135m", models_dir=models_dir, device="cpu")
    said: list[str] = []
    again = load_model(
        "smollm2-135m", models_dir=models_dir, device="cpu", download=False, on_message=said.append
    )
    assert said == [again.weights_reason]
    # 0.6 s alone on two cores; the bound is for a busy machine.
    assert again.load_s < 20


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_both_plain_formats_answer(models_dir: Path, weights: str) -> None:
    model = load_model("smollm2-135m", models_dir=models_dir, weights=weights, device="cpu")
    assert likeliest(model) == "Paris"


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_bitsandbytes_formats_are_smaller_and_answer(models_dir: Path, weights: str) -> None:
    pytest.importorskip("bitsandbytes", reason="int8 and nf4 need bitsandbytes")
    model = load_model("smollm2-135m", models_dir=models_dir, weights=weights, device="cpu")
    assert model.weights == weights
    linear = model.model.get_submodule("model.layers.0.mlp.up_proj").weight
    plain = 4 * model.geometry.hidden_size * model.geometry.intermediate_size
    assert linear.nbytes <= plain // {"int8": 4, "nf4": 8}[weights]
    assert likeliest(model) == "Paris"


def test_a_gguf_path_and_a_folder_are_the_same_model(models_dir: Path) -> None:
    spec = spec_of("smollm2-135m")
    named = load_model(spec.name, models_dir=models_dir, weights="fp32", device="cpu")
    path = model_file(spec, models_dir)
    if not path.is_file():
        pytest.skip(f"needs the GGUF file beside its copy, and {path} is not there")
    by_path = load_model(str(path), models_dir=models_dir, weights="fp32", device="cpu")
    assert by_path.fingerprint == named.fingerprint and by_path.name == path.stem


def test_the_larger_model_answers_where_it_is(models_dir: Path) -> None:
    spec = spec_of("qwen2.5-coder-1.5b")
    copy = converted_dir(models_dir / CONVERTED, spec.sha256)
    if not (is_complete(copy) or is_fetched(spec, models_dir)):
        pytest.skip(f"needs {spec.title}: python launch.py models get {spec.name}")
    model = load_model(spec.name, models_dir=models_dir, device="cpu", download=False)
    assert model.geometry == spec.geometry
    assert likeliest(model) == "Paris"


def test_the_state_of_every_known_model_can_be_told(models_dir: Path) -> None:
    states = {spec.name: state(spec, models_dir) for spec in known_models()}
    assert set(states.values()) <= {"ready", "fetched", "absent"}
    load_model("smollm2-135m", models_dir=models_dir, device="cpu")
    assert state(spec_of("smollm2-135m"), models_dir) == "ready"
