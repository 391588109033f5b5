"""The model that is loaded, one at a time, and what computes its answers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.progress import OnProgress, ignore_progress

if TYPE_CHECKING:
    from engine.decoding import DecoderChoice
    from engine.loader import LoadedModel


class HeldModel:
    """Loads a model when it is first asked for, and packs the weights that answer beside it.

    answer_weights  what answers are computed with (engine.decoding), packed as soon as a model is
                    there; None: nobody means to ask, and they are packed if somebody does
    announce        gets one sentence for whatever the user should know
    on_change       called before another model takes the place of the one that is held
    """

    def __init__(
        self,
        models_dir: Path,
        device: str,
        answer_weights: str | None,
        announce: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        self._models_dir = models_dir
        self._device = device
        self._packs_at_once = answer_weights is not None
        self._answer_weights = answer_weights or "auto"
        self._announce = announce
        self._on_change = on_change
        self._model: tuple[tuple[str, str], LoadedModel] | None = None
        self._decoder: Future[DecoderChoice] | None = None
        self._said = ""

    def get(
        self,
        name: str | None,
        weights: str,
        on_progress: OnProgress = ignore_progress,
        *,
        download: bool = True,
    ) -> LoadedModel:
        """The loaded model of this name. Raises what engine.loader.load_model raises."""
        from engine.registry import default_model

        key = (name or default_model(), weights)
        if self._model is None or self._model[0] != key:
            self._model = self._decoder = None
            self._on_change()
            self._model = (key, self._load(*key, on_progress, download=download))
        return self._model[1]

    def _load(
        self, name: str, weights: str, on_progress: OnProgress, *, download: bool
    ) -> LoadedModel:
        from engine.decoding import check_answer_format
        from engine.loader import load_model

        on_progress("load", 0, 0)
        loaded = load_model(
            name,
            models_dir=self._models_dir,
            weights=weights,
            device=self._device,
            download=download,
            on_progress=lambda done, total: on_progress("fetch", done, total),
            on_message=self._announce,
        )
        if self._packs_at_once:
            check_answer_format(self._answer_weights, loaded.device)
            if self._answer_weights != "captured":  # recording wants the card for itself
                self._decoder = self._begin_packing(loaded)
        return loaded

    def decoder(self, model: LoadedModel) -> DecoderChoice:
        """What computes the answers of a model; its weights are packed while documents are read.

        Raises InvalidSetting if the model cannot answer with the weights asked for.
        """
        if self._decoder is None:
            self._decoder = self._begin_packing(model)
        choice = self._decoder.result()
        if self._said != choice.reason:
            self._said = choice.reason
            self._announce(choice.reason)
        return choice

    def _begin_packing(self, model: LoadedModel) -> Future[DecoderChoice]:
        from engine.decoding import choose_decoder
        from engine.numeric import CACHE_NAME

        cache_file = self._models_dir / CACHE_NAME
        pool = ThreadPoolExecutor(1, "packing")
        found = pool.submit(choose_decoder, model, self._answer_weights, cache_file=cache_file)
        pool.shutdown(wait=False)
        return found

    def describe(self) -> dict[str, Any]:
        """The loaded model in plain values; empty before the first was loaded."""
        if self._model is None:
            return {}
        loaded = self._model[1]
        return {"name": loaded.name, "weights": loaded.weights, "device": str(loaded.device)}
