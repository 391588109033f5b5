"""The shape of a model in the engine's own words, converted from its configuration in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import UnsupportedArchitecture

# Families whose logits the engine reproduces: tests/unit/engine/test_full_attention.py.
SERVED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")
# What config.json counts; some families leave some of them out.
COUNTS = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size",
    "max_position_embeddings", "intermediate_size", "vocab_size",
)  # fmt: skip
# Rotary rules whose frequencies do not change with the length of the input.
STATIC_ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class ModelGeometry:
    """Shape of a decoder: counts of layers and heads, widths, and the trained window in tokens."""

    n_layers: int
    n_q_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    window: int
    intermediate_size: int = 0
    vocab_size: int = 0

    def __post_init__(self) -> None:
        if self.n_q_heads % self.n_kv_heads:
            raise UnsupportedArchitecture(
                f"{self.n_q_heads} query heads do not divide into {self.n_kv_heads} groups."
            )

    @property
    def group_size(self) -> int:
        """Query heads that share one key-value head."""
        return self.n_q_heads // self.n_kv_heads

    @property
    def n_slots(self) -> int:
        """Ragged rows of the cache: layers times key-value heads."""
        return self.n_layers * self.n_kv_heads

    def kv_bytes_per_token(self, bytes_per_value: float = 2) -> int:
        """Bytes one token takes in an unpruned cache, keys and values, all layers."""
        return int(2 * self.n_slots * self.head_dim * bytes_per_value)


def geometry_of(config: Any) -> ModelGeometry:
    """Read the geometry off a transformers configuration.

    Raises UnsupportedArchitecture, naming what cannot be served, for families, sliding windows
    and rotary rules the engine does not reproduce exactly; ValueError for an impossible count.
    """
    family = str(getattr(config, "model_type", "unknown"))
    if family not in SERVED_FAMILIES:
        raise UnsupportedArchitecture(
            f"Models of type '{family}' cannot be served.",
            f"Choose a model of one of these types: {', '.join(SERVED_FAMILIES)}.",
        )
    check_counts({key: getattr(config, key, None) for key in COUNTS})
    _refuse_sliding_window(config, family)
    _refuse_moving_rope(config, family)
    n_q_heads = int(config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_q_heads
    return ModelGeometry(
        n_layers=int(config.num_hidden_layers),
        n_q_heads=n_q_heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or n_q_heads),
        head_dim=int(head_dim),
        hidden_size=int(config.hidden_size),
        window=int(config.max_position_embeddings),
        intermediate_size=int(getattr(config, "intermediate_size", 0) or 0),
        vocab_size=int(getattr(config, "vocab_size", 0) or 0),
    )


def check_counts(settings: Mapping[str, Any]) -> None:
    """Raise ValueError, naming it, if a count in a config.json is no whole number above 0."""
    for key in COUNTS:
        value = settings.get(key)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{key} is {value!r}, not a whole number above 0.")


def _refuse_sliding_window(config: Any, family: str) -> None:
    layer_types = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None)
    slides = any(kind != "full_attention" for kind in layer_types)
    if not layer_types and family in ("mistral", "phi3") and window:
        slides = int(window) < int(config.max_position_embeddings)
    if slides:
        raise UnsupportedArchitecture(
            f"This '{family}' model has sliding-window or linear attention layers "
            "and cannot be served.",
            "Choose a model whose layers all attend to the whole text.",
        )


def _refuse_moving_rope(config: Any, family: str) -> None:
    parameters = getattr(config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    if kind not in STATIC_ROPE_TYPES:
        raise UnsupportedArchitecture(
            f"This '{family}' model uses the rotary rule '{kind}' and cannot be served.",
            f"Served rules: {', '.join(STATIC_ROPE_TYPES)}.",
        )
