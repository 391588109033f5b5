"""Which decoder answers: the lean one for a known model on the CPU, else the model's modules.

On a card the lean one answers where it is asked for: with the model's own weights, launch by launch
or recorded once (engine.captured), or in nf4. Which is fastest there was never measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from engine.captured import try_captured
from engine.errors import CaptureFailed, InvalidSetting, NotLean
from engine.generate import Decoder, StockDecoder
from engine.lean import CPU_FORMATS
from engine.numeric import pick_answer_format
from engine.packing import fits, packed, packed_nbytes
from engine.weights import check_bitsandbytes

if TYPE_CHECKING:
    from engine.lean import LeanFormat
    from engine.loader import LoadedModel

ANSWER_FORMATS = ("auto", "stock", "same", "captured", "fp16", "int8", "int4", "nf4")


@dataclass(frozen=True)
class DecoderChoice:
    """model, its decoder; format: one of ANSWER_FORMATS but auto; reason: one for the user."""

    model: LoadedModel
    decoder: Decoder
    format: str
    reason: str


def choose_decoder(
    model: LoadedModel, wanted: str = "auto", *, cache_file: Path | None = None
) -> DecoderChoice:
    """Settle how answers are computed; packing takes seconds, so the choice is kept.

    cache_file  remembers what this machine was measured to answer fastest with
    Raises      InvalidSetting for an unknown format, or for one this model cannot have
    """
    check_answer_format(wanted, model.device)
    if wanted == "stock" or (wanted == "auto" and model.device != "cpu"):
        where = "as asked" if wanted == "stock" else f"on {model.device}"
        return _stock(model, f"Answers through the model's own modules, {where}.")
    if wanted != "auto":
        try:
            return _lean(model, wanted)
        except NotLean as problem:
            raise InvalidSetting(
                f"This model cannot answer in {wanted}: {problem.cause}",
                "Leave the choice to the program.",
            ) from problem
    format = pick_answer_format(cache_file).name
    if not fits(model, format):
        need = packed_nbytes(model.geometry, format)
        size = f"{need >> 20} MiB of {format} weights beside it would not fit"
        return _stock(model, f"Answers through the model's own modules: {size}.")
    try:
        return _lean(model, format)
    except NotLean as problem:
        return _stock(model, f"Answers through the model's own modules: {problem.cause}")


def check_answer_format(wanted: str, device: str) -> None:
    """Raise InvalidSetting, with what to choose, for a format that is unknown or not of the device.

    Costs nothing, so that a choice can be refused before a document is read.
    """
    if wanted not in ANSWER_FORMATS:
        raise InvalidSetting(
            f"answer weights '{wanted}' are not known.",
            f"Choose one of {', '.join(ANSWER_FORMATS)}.",
        )
    if wanted in CPU_FORMATS and device != "cpu":
        raise InvalidSetting(
            f"Answer weights {wanted} are of the CPU; the model is on {device}.",
            "Choose stock, same, captured or nf4, or leave the choice to the program.",
        )
    if wanted == "captured" and device == "cpu":
        raise InvalidSetting(
            "Answer weights captured are of a card: there is no launching to save on the CPU.",
            "Choose fp16, int8 or int4, or leave the choice to the program.",
        )
    if wanted == "nf4" and device == "cpu":
        raise InvalidSetting(
            "Answer weights nf4 are of a card: on the CPU they are unpacked for every token.",
            "Choose fp16, int8 or int4, or leave the choice to the program.",
        )
    if wanted == "nf4":
        check_bitsandbytes("nf4")


def _captured(model: LoadedModel) -> DecoderChoice:
    """The lean decoder with the model's own weights, a token one launch where that can be."""
    lean = packed(model, "same")
    how = "Answers with the model's own weights"
    try:
        decoder = try_captured(model, lean)
    except CaptureFailed as problem:
        reason = f"{how}, launch by launch: {problem.cause}"
        return DecoderChoice(model, lean, "same", reason)
    return DecoderChoice(model, decoder, "captured", f"{how}, each token one launch.")


def _lean(model: LoadedModel, format: str) -> DecoderChoice:
    if format == "captured":
        return _captured(model)
    lean = packed(model, cast("LeanFormat", format))
    notes = " ".join(["", *lean.notes])
    size = f"{lean.nbytes >> 20} MiB, packed in {lean.build_s:.1f} s"
    how = "the model's own weights" if format == "same" else f"weights in {format} ({size})"
    return DecoderChoice(model, lean, format, f"Answers with {how}.{notes}")


def _stock(model: LoadedModel, reason: str) -> DecoderChoice:
    return DecoderChoice(model, StockDecoder(model), "stock", reason)
