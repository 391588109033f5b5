"""What all benchmarks share: the request, the checked model, the text, and the report's head."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.progress import ProgressLine

if TYPE_CHECKING:
    from engine.decoding import DecoderChoice
    from engine.loader import LoadedModel
    from engine.prefill import PrefillConfig
    from engine.quantisation import QuantConfig
    from engine.scoring import Scorer


@dataclass(frozen=True)
class Request:
    """What to measure, as plain values that also travel to a measuring process.

    data_dir, models_dir  folders
    lengths               tokens, ascending; each benchmark says what they are lengths of
    threads               of torch, and of the rival; None: as many as torch takes
    kv_bits               of kept entries, as engine.quantisation.parse_kv_bits reads them
    answer_weights        what answers are computed with (engine.decoding)
    scorer                None: the model's own
    text                  UTF-8 file to read; None: made on the spot
    rival_python          Python that has llama-cpp-python; None: see `peers.find_python`
    """

    model: str
    data_dir: str
    models_dir: str
    lengths: tuple[int, ...]
    weights: str = "auto"
    threads: int | None = None
    budget_tokens: int = 4096
    chunk_tokens: int = 1024
    runs: int = 3
    kv_bits: str = "16"
    answer_weights: str = "auto"
    scorer: str | None = None
    text: str | None = None
    rival_python: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Request:
        """The inverse of `to_dict`."""
        return cls(**{**values, "lengths": tuple(values["lengths"])})


class Bench:
    """One request at work. The model is loaded and its parity checked when it is first used."""

    def __init__(self, request: Request, progress: ProgressLine) -> None:
        self.request = request
        self.progress = progress
        self.parity: dict[str, float | None] = {}
        self._ids: list[int] = []

    @cached_property
    def model(self) -> LoadedModel:
        """The model as it reads the longest text, at the threads asked for; what that takes is
        packed before anything is measured. Raises ParityRed, and what loading raises.
        """
        import torch

        from app.benchmarks import parity
        from engine.loader import load_model
        from engine.trunk import for_a_text

        if self.request.threads:
            torch.set_num_threads(self.request.threads)
        self.progress("load", 0, 0)
        loaded = load_model(
            self.request.model,
            models_dir=Path(self.request.models_dir),
            weights=self.request.weights,
            on_progress=lambda done, total: self.progress("fetch", done, total),
            on_message=self.progress.say,
        )
        model = for_a_text(loaded, max(self.request.lengths))
        self.parity = parity.check(model)
        return model

    @property
    def threads(self) -> int:
        """Threads torch computes with."""
        import torch

        return self.request.threads or torch.get_num_threads()

    @property
    def compute_format(self) -> str:
        """Name of the type activations are computed in, as "float32"."""
        return str(self.model.compute_dtype).removeprefix("torch.")

    @property
    def reading_format(self) -> str:
        """What documents are read with, as "float32" or "float32 from weights in fp16"."""
        packed = " from weights in fp16" if self.model.reads_packed else ""
        return f"{self.compute_format}{packed}"

    def new_scorer(self) -> Scorer:
        """A fresh scorer for one reading."""
        from heads.catalog import make_scorer

        heads = Path(self.request.models_dir) / "heads"
        return make_scorer(self.scorer_name, self.model, seed=0, state_dir=heads)

    @property
    def scorer_name(self) -> str:
        """The scorer asked for, or the model's own."""
        from heads.catalog import default_scorer

        heads = Path(self.request.models_dir) / "heads"
        return self.request.scorer or default_scorer(self.model.name, heads)

    @property
    def quant(self) -> QuantConfig:
        """How finely entries are kept."""
        from engine.quantisation import parse_kv_bits

        return parse_kv_bits(self.request.kv_bits, self.model.geometry)

    @cached_property
    def decoder(self) -> DecoderChoice:
        """What answers are computed with, as in the application. Raises ParityRed."""
        from app.benchmarks import parity
        from engine.decoding import choose_decoder
        from engine.numeric import CACHE_NAME

        cache_file = Path(self.request.models_dir) / CACHE_NAME
        choice = choose_decoder(self.model, self.request.answer_weights, cache_file=cache_file)
        self.parity |= parity.check_answers(choice, self.ids(parity.N_TOKENS))
        return choice

    def config(self, scorer: Scorer) -> PrefillConfig:
        """How documents are read here, with the allocation that suits the scorer."""
        from engine.eviction import EvictionConfig
        from engine.prefill import PrefillConfig

        eviction = EvictionConfig(
            budget_tokens=self.request.budget_tokens,
            allocation=scorer.allocation,
            profile=scorer.profile if scorer.allocation == "profile" else None,
        )
        chunk = self.request.chunk_tokens
        return PrefillConfig(chunk_tokens=chunk, eviction=eviction, quant=self.quant)

    def ids(self, n_tokens: int) -> list[int]:
        """The first n_tokens of the text. Raises InvalidSetting if it has fewer."""
        from app.benchmarks.texts import check_length, text_ids

        if len(self._ids) < n_tokens:
            file = Path(self.request.text) if self.request.text else None
            self._ids = text_ids(self.model.tokenizer, n_tokens, file)
            check_length(self._ids, n_tokens, file)
        return self._ids[:n_tokens]

    def stage(self, text: str) -> None:
        """Say what comes next; the speed shown after it counts anew."""
        self.progress(text, 0, 0)

    def warm_up(self) -> None:
        """Read one chunk that is not measured: libraries and threads set themselves up."""
        from engine.prefill import prefill

        scorer = self.new_scorer()
        prefill(self.model, self.ids(self.request.chunk_tokens), self.config(scorer), scorer)

    def endless(self) -> LoadedModel:
        """The model without stop tokens, so that every answer has the length asked for."""
        return replace(self.model, stop_token_ids=frozenset())

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder on the disk of the data directory that goes away afterwards."""
        root = Path(self.request.data_dir)
        root.mkdir(parents=True, exist_ok=True)
        ours = f".tmp-{os.getpid()}"  # as app.store.sweep knows what a killed process left
        with tempfile.TemporaryDirectory(prefix="bench-", suffix=ours, dir=root) as name:
            yield Path(name)

    def about(self, benchmark: str) -> dict[str, Any]:
        """What every report says first: what was measured, on what, and that parity held."""
        from engine.numeric import cpu_name

        model, request = self.model, self.request
        return {
            "benchmark": benchmark,
            "model": model.name,
            "weights": model.weights,
            "compute_format": self.compute_format,
            "reading_format": self.reading_format,
            "device": model.device,
            "cpu": cpu_name(),
            "threads": self.threads,
            "budget_tokens": request.budget_tokens,
            "chunk_tokens": request.chunk_tokens,
            "kv_bits": self.quant.name,
            "runs": request.runs,
            "text": request.text or "made: heads.questions.filler",
            "parity": {"ok": True, **self.parity},
        }
