"""Loads a model ready for the engine: evaluated, frozen, its attention prepared, fingerprinted."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from engine import memory, numeric
from engine.configuration import corrupt, first_line, read_config, readable
from engine.device import fallbacks, pick_device
from engine.errors import InvalidSetting, ModelCorrupt, NotEnoughMemory
from engine.fingerprint import fingerprint_of
from engine.geometry import ModelGeometry
from engine.gguf import quiet_transformers
from engine.rotary import Rotary
from engine.sources import locate
from engine.weights import WeightChoice, check_format, choose_weights, weights_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>")
# What loading weights that do not fit their configuration raises.
UNFIT = (OSError, LookupError, ValueError, RuntimeError, TypeError, AttributeError, ArithmeticError)
# What a decoder layer computes with; rotary tables and scales, which old files carry, are not it.
LAYER_WEIGHT = re.compile(r"(model\.)?layers\.\d+\.(.+\.)?\w*(proj|norm)\.(weight|bias)")


@dataclass
class LoadedModel:
    """A model the engine can read and write with.

    name            registry name, hub id, or the name of the folder or file
    model           causal language model in eval mode; its forward needs the keyword `store`
    weights         format of the linear weights: fp32, bf16, int8 or nf4
    weights_reason  why that format and compute type, one sentence
    fingerprint     digests: weights, config, rotary, tokenizer, chat_template
    stop_token_ids  any of these ends an answer
    load_s          seconds from call to ready, downloads and conversion included
    reads_packed    whether long texts run from copies of the weights in fp16 (engine.trunk)
    """

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    geometry: ModelGeometry
    rotary: Rotary
    device: str
    weights: str
    weights_reason: str
    compute_dtype: torch.dtype
    fingerprint: dict[str, str]
    stop_token_ids: frozenset[int]
    load_s: float
    reads_packed: bool = False


def load_model(
    name: str,
    *,
    models_dir: Path,
    weights: str = "auto",
    device: str = "auto",
    download: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> LoadedModel:
    """Load a model by registry name or alias, local folder, GGUF path or hub id.

    weights      auto: on a CPU the compute format measured to be faster, on a GPU bf16, or nf4
                 if bf16 does not fit; fp32, bf16, int8 and nf4 as named
    device       auto takes the GPU if torch can use one
    download     False refuses to touch the network
    on_progress  bytes done and in all, while fetching
    on_message   sentences worth showing: fetching, converting, which format and why
    Raises       UnknownModel, ModelDownloadFailed, ModelCorrupt, UnsupportedArchitecture,
                 NotEnoughMemory, NotEnoughDisk, InvalidSetting
    """
    started = time.perf_counter()
    check_format(weights)
    asked, device = device, pick_device(device)
    located = locate(
        name, models_dir, download=download, on_progress=on_progress, on_message=on_message
    )
    folder = located.folder
    with quiet_transformers():
        config, geometry = read_config(folder)
        tokenizer = _read_tokenizer(folder)
        tied = bool(getattr(config, "tie_word_embeddings", False))
        cache_file = models_dir / numeric.CACHE_NAME
        choice = choose_weights(weights, device, geometry, tied=tied, cache_file=cache_file)
        if on_message:
            on_message(choice.reason)
            for sentence in fallbacks(asked, device):
                on_message(sentence)
        _check_memory(located.name, geometry, choice, device, tied)
        model = _read_weights(folder, config, choice, device)
    model.eval()
    model.requires_grad_(False)

    from engine.attention import prepare

    rotary = prepare(model)
    return LoadedModel(
        name=located.name,
        model=model,
        tokenizer=tokenizer,
        geometry=geometry,
        rotary=rotary,
        device=device,
        weights=choice.weights,
        weights_reason=choice.reason,
        compute_dtype=choice.compute_dtype,
        fingerprint=fingerprint_of(folder, choice.weights, tokenizer, rotary, models_dir),
        stop_token_ids=stop_tokens(model, tokenizer),
        load_s=time.perf_counter() - started,
        reads_packed=choice.packed,
    )


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the configurations' and tokenizer's eos, and known turn ends."""
    stops: set[int] = set()
    for config in (model.generation_config, model.config):
        eos = getattr(config, "eos_token_id", None)
        stops.update([eos] if isinstance(eos, int) else eos or ())
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    added = {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}
    stops.update(added[end] for end in TURN_ENDS if end in added)
    return frozenset(stops)


def _read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with readable(folder, "the tokenizer"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _read_weights(folder: Path, config: Any, choice: WeightChoice, device: str) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    # It warns, at every layer, that activations become fp16 inside the int8 product; that is how
    # the method works (LLM.int8, arXiv 2208.07339) and nothing a user can act on.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **choice.load_settings(),
        )
    except torch.OutOfMemoryError as problem:
        raise NotEnoughMemory(
            f"The GPU ran out of memory while {folder.name} was loaded.",
            "Choose --weights nf4, a smaller model, or close other programs.",
        ) from problem
    except (*UNFIT, SafetensorError) as problem:
        # transformers gives whatever happened while it packed as a plain RuntimeError.
        packed = device == "cuda" and choice.weights in ("int8", "nf4")
        if packed and type(problem) is RuntimeError:
            raise _not_packed(folder, choice.weights, problem) from problem
        raise corrupt(folder, "the weights", problem) from problem
    # transformers fills what is missing with random numbers: an answer from those would be noise.
    wrong = sorted([*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])])
    if wrong:
        raise ModelCorrupt(
            f"{folder} lacks weights the model needs, {wrong[0]} for one.",
            "Download the model again.",
        )
    # What it has no place for it leaves out: with layers missing, an answer would be noise as well.
    extra = sorted(key for key in report["unexpected_keys"] if LAYER_WEIGHT.fullmatch(key))
    if extra:
        raise ModelCorrupt(
            f"{folder} has weights that its config.json has no place for, {extra[0]} for one.",
            "Download the model again.",
        )
    return model


def _check_memory(
    name: str, geometry: ModelGeometry, choice: WeightChoice, device: str, tied: bool
) -> None:
    need = weights_bytes(geometry, choice.weights, compute=choice.compute, tied=tied)
    free = memory.available_memory(device)
    if need > free:
        place = "GPU memory" if device == "cuda" else "memory"
        raise NotEnoughMemory(
            f"{name} in {choice.weights} needs {need / 2**30:.1f} GiB of {place}, "
            f"and {free / 2**30:.1f} GiB are free.",
            "Choose --weights nf4, a smaller model, or close other programs.",
        )


def _not_packed(folder: Path, weights: str, problem: Exception) -> InvalidSetting:
    """The library that packs weights on a card failed: transformers hides which error it was."""
    return InvalidSetting(
        f"The weights of {folder.name} could not be packed in {weights} on the card: "
        f"{first_line(problem)}",
        "Close other programs that use the card, or choose --weights bf16 or a smaller model.",
    )
