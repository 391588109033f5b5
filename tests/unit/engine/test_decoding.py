"""Who answers: the lean decoder where it can, else the model's modules, and never silently."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import decoding, numeric, packing
from engine.decoding import ANSWER_FORMATS, choose_decoder
from engine.errors import InvalidSetting
from engine.eviction import EvictionConfig
from engine.generate import Sampling, StockDecoder, generate
from engine.lean import LeanDecoder
from engine.prefill import PrefillConfig, prefill
from engine.scorers.keydiff import KeyDiffScorer
from tests.fakes import tiny_model, tokens


def view_of(model: Any) -> Any:
    return prefill(
        model, tokens(90), PrefillConfig(64, EvictionConfig(budget_tokens=None)), KeyDiffScorer()
    ).view()


def test_on_the_cpu_answers_are_lean() -> None:
    model: Any = tiny_model()
    choice = choose_decoder(model)
    assert isinstance(choice.decoder, LeanDecoder) and choice.format in ("same", "fp16", "int8")
    assert choice.format in choice.reason or choice.format == "same"
    assert choice.model is model
    same = choose_decoder(model, "same").decoder
    expected = StockDecoder(model).forward(view_of(model), tokens(5, 3))
    torch.testing.assert_close(
        same.forward(view_of(model), tokens(5, 3)), expected, atol=1e-4, rtol=1e-4
    )
    found = choice.decoder.forward(view_of(model), tokens(5, 3))
    assert float((found - expected).abs().max()) < 0.05 * float(expected.max() - expected.min())


def test_what_is_not_known_goes_through_its_modules_and_says_why() -> None:
    model: Any = tiny_model()
    model.model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    choice = choose_decoder(model)
    assert isinstance(choice.decoder, StockDecoder) and "hook" in choice.reason
    with pytest.raises(InvalidSetting, match="hook"):
        choose_decoder(model, "int8")


def test_elsewhere_than_on_the_cpu_the_modules_answer() -> None:
    model: Any = tiny_model()
    model.device = "cuda"
    choice = choose_decoder(model)
    assert choice.format == "stock" and "cuda" in choice.reason
    with pytest.raises(InvalidSetting, match="int8 are of the CPU"):
        choose_decoder(model, "int8")
    assert choose_decoder(model, "same").format == "same"


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_nf4_packs_the_layers_and_leaves_the_head() -> None:
    model: Any = tiny_model(hidden_size=64, intermediate_size=128)
    decoder = LeanDecoder(model, "nf4")
    assert (decoder.format, decoder.head_format, decoder.notes) == ("nf4", "same", [])
    expected = StockDecoder(model).forward(view_of(model), tokens(5, 3))
    found = decoder.forward(view_of(model), tokens(5, 3))
    gap = float((found - expected).abs().max()) / float(expected.max() - expected.min())
    assert 0 < gap < 0.3


def test_names_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="fp16, int8, int4"):
        choose_decoder(tiny_model(), "int3")  # type: ignore[arg-type]


def test_nf4_is_refused_on_the_cpu_and_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model()
    with pytest.raises(InvalidSetting, match="of a card"):
        choose_decoder(model, "nf4")
    model.device = "cuda"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidSetting, match="bitsandbytes, which is not installed"):
        choose_decoder(model, "nf4")


@pytest.mark.parametrize("wanted", [f for f in ANSWER_FORMATS if f not in ("nf4", "captured")])
def test_every_choice_answers(wanted: str) -> None:
    model: Any = tiny_model()
    decoder = choose_decoder(model, wanted).decoder
    made = generate(model, view_of(model), tokens(5, 3), Sampling(8), decoder=decoder)
    assert len(made.token_ids) == 8 or made.finish == "eos"


def test_packed_weights_that_would_not_fit_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "available_memory", lambda device: 1000)
    monkeypatch.setattr(
        decoding, "pick_answer_format", lambda file: numeric.AnswerChoice("int8", {}, "")
    )
    choice = choose_decoder(tiny_model())
    assert choice.format == "stock" and "would not fit" in choice.reason


@pytest.mark.parametrize(
    ("plain", "fp16", "int8", "name"),
    [(4, 2, 1.8, "fp16"), (4, 2, 9, "fp16"), (4, 5, 9, "same"), (4, 5, 3, "int8")],
)
def test_the_fast_format_is_chosen_and_the_exact_one_in_a_draw(
    plain: float, fp16: float, int8: float, name: str
) -> None:
    choice = numeric.choose_answer_format({"plain": plain, "fp16": fp16, "int8": int8})
    assert choice.name == name and f"{plain:.2f} ms" in choice.reason


def test_a_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(numeric, "seconds_per_call", lambda f: calls.append(f) or 0.001)
    file = tmp_path / "new" / "format.json"
    first = numeric.pick_answer_format(file)
    assert numeric.pick_answer_format(file) == first and len(calls) == 3
    file.write_text("{broken")
    assert numeric.pick_answer_format(file) == first and len(calls) == 6
