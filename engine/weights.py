"""The number formats weights can be held in, and how each is asked for.

`fp32` and `bf16` compute in the format they are held in. `int8` and `nf4` are bitsandbytes'
formats: the linear layers shrink, embeddings and the output matrix stay in the compute format.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import InvalidSetting
from engine.geometry import ModelGeometry
from engine.memory import available_memory
from engine.numeric import pick_format

if TYPE_CHECKING:
    import torch

WEIGHT_FORMATS = ("auto", "fp32", "bf16", "int8", "nf4")
# Bytes a linear weight: nf4 has one fp32 scale for 64 weights, itself stored in 8 bits.
LINEAR_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "nf4": 0.516}
GPU_SHARE = 0.85  # of the free GPU memory that unquantised weights may take under "auto"
CPU_SHARE = 0.7  # of the free main memory that fp32 weights may take under "auto"


@dataclass(frozen=True)
class WeightChoice:
    """weights: one of WEIGHT_FORMATS but auto; compute: fp32 or bf16; reason: for the user.

    packed: whether long texts are read from copies of fp32 weights that are packed in fp16
    """

    weights: str
    compute: str
    reason: str
    packed: bool = False

    @property
    def compute_dtype(self) -> torch.dtype:
        """The torch type activations are computed in."""
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16}[self.compute]

    def load_settings(self) -> dict[str, Any]:
        """Keywords for `from_pretrained` that produce these weights."""
        settings: dict[str, Any] = {"dtype": self.compute_dtype}
        if self.weights in ("int8", "nf4"):
            settings["quantization_config"] = _bitsandbytes(self.weights, self.compute_dtype)
        return settings


def check_format(weights: str) -> None:
    """Raise InvalidSetting, listing the formats, unless weights is one of WEIGHT_FORMATS."""
    if weights not in WEIGHT_FORMATS:
        raise InvalidSetting(
            f"weights '{weights}' is not a known format.",
            f"Choose one of {', '.join(WEIGHT_FORMATS)}.",
        )


def choose_weights(
    weights: str,
    device: str,
    geometry: ModelGeometry,
    *,
    tied: bool = True,
    cache_file: Path | None = None,
) -> WeightChoice:
    """Settle "auto" and the compute format for a device.

    CPU: the format `numeric.pick_format` measured to be faster, bf16 if fp32 would not fit. The
    bitsandbytes formats compute in it too: nf4 in a slow format is a hundred times slower.
    GPU: bf16 from compute capability 8 on, else fp32; auto turns to nf4 if that does not fit.
    """
    check_format(weights)
    if device == "cpu":
        return _choose_on_cpu(weights, geometry, tied, cache_file)
    import torch

    major, minor = torch.cuda.get_device_capability()
    compute = card_format((major, minor))
    capability = f"GPU of compute capability {major}.{minor}"
    if weights in ("fp32", "bf16"):
        return WeightChoice(weights, weights, f"{weights} as asked, on a {capability}.")
    if weights != "auto":
        check_bitsandbytes(weights)
        return WeightChoice(weights, compute, f"{weights} as asked, computing in {compute}.")
    need = weights_bytes(geometry, compute, tied=tied)
    room = GPU_SHARE * available_memory(device)
    if need <= room:
        return WeightChoice(compute, compute, f"{compute} fits the {capability}.")
    check_bitsandbytes("nf4")
    return WeightChoice(
        "nf4",
        compute,
        f"Weights in nf4: {compute} would take {need / 2**30:.1f} GiB of the GPU's memory.",
    )


def card_format(capability: tuple[int, int]) -> str:
    """What a card computes in: bf16 from compute capability 8 on, else fp32."""
    return "bf16" if capability[0] >= 8 else "fp32"


def _choose_on_cpu(
    weights: str, geometry: ModelGeometry, tied: bool, cache_file: Path | None
) -> WeightChoice:
    if weights in ("fp32", "bf16"):
        return WeightChoice(weights, weights, f"{weights} as asked, on the CPU.")
    measured = pick_format(cache_file)
    if weights != "auto":
        check_bitsandbytes(weights)
        reason = f"{weights} as asked, computing in {measured.name}: {measured.reason}"
        return WeightChoice(weights, measured.name, reason)
    need = weights_bytes(geometry, measured.name, tied=tied)
    if measured.name == "fp32" and need > CPU_SHARE * available_memory("cpu"):
        reason = f"bf16, because fp32 would take {need / 2**30:.1f} GiB of memory."
        return WeightChoice("bf16", "bf16", reason)
    return WeightChoice(measured.name, measured.name, measured.reason, measured.packed)


def check_bitsandbytes(weights: str) -> None:
    """Raise InvalidSetting if the library for int8 and nf4 is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InvalidSetting(
            f"weights '{weights}' needs the package bitsandbytes, which is not installed.",
            "Install it with `pip install bitsandbytes`, or choose bf16.",
        )


def weights_bytes(
    geometry: ModelGeometry, weights: str, *, compute: str = "bf16", tied: bool = True
) -> int:
    """Memory the weights take in one of the formats (not auto).

    tied  whether input and output matrix are one; a bitsandbytes format keeps both in `compute`
    """
    wide = LINEAR_BYTES[compute if weights in ("int8", "nf4") else weights]
    matrices = 1 if tied else 2
    embedding = geometry.vocab_size * geometry.hidden_size * matrices
    return int(linear_parameters(geometry) * LINEAR_BYTES[weights] + embedding * wide)


def linear_parameters(geometry: ModelGeometry) -> int:
    """Weights in the linear layers of all decoder layers (gated feed-forward, no biases)."""
    heads = 2 * geometry.n_q_heads + 2 * geometry.n_kv_heads
    attention = heads * geometry.head_dim * geometry.hidden_size
    feed_forward = 3 * geometry.hidden_size * geometry.intermediate_size
    return geometry.n_layers * (attention + feed_forward)


def _bitsandbytes(weights: str, compute_dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if weights == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )
