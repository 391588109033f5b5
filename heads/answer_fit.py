"""Fits heads through answers: by what a reader is told once entries are gone.

A label says what an entry is worth by itself. What an answer loses when fifteen of sixteen go at
once it does not say: what one head drops another may hold, and some heads nobody misses. Here the
frozen model answers a document's questions from a cache whose entries are dimmed by gates

    gate_i = sigmoid((sharpness (s_i - threshold) + e) / temperature),   e logistic noise,

of the heads' scores s, all layers and heads under one threshold, at which the wanted share is
expected to stay. The gates are those of 1611.00712 (concrete distribution), learnt scores of
entries by what the model then says are DMS's (2506.05345); there the model is trained as well, here
the heads alone. They harden on the way: through a soft gate a strong query still reads what
eviction will drop, and heads that learn from soft ones alone spend more than their budget. What is
made small is the distance to what the model says with everything kept:

    1/2 KL(full || gated)  +  1/2 mean over tokens of max(0, log p_full - log p_gated)

on the tokens of the true answers. The second part counts only what is lost: heads that make an
answer likelier than the whole document does gain nothing, or they would learn the manner of the
answers instead of the document.
The gradient passes through the frozen model to the gates; a step costs some three forward passes
of the questions and their answers, and one more where a question comes for the first time: what
the model says of it with everything kept does not change.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as nnf

from engine.errors import InvalidSetting, ScorerUnavailable
from engine.eviction import EvictionConfig, protected
from heads.gated_cache import GatedCache, answer_hidden, log_probs, question_lengths
from heads.lessons import Lesson, check_lessons
from heads.recordings import Recording, load_recording
from heads.retaining import RetainingHead, with_neighbours
from heads.tensor_file import write_tensors
from heads.train import keys_values

if TYPE_CHECKING:
    from engine.loader import LoadedModel

ANSWER_FIT_VERSION = 3  # of what a fit does with its settings: a fit of another is not gone on with
_WARMUP_STEPS = 10
_FINAL_LR = 0.05  # of the first, at the end of the schedule
_KEPT_EVERY = 25  # steps between two states on disk
_BISECTIONS = 40
_SHUT = 1e6  # sharpness at which a gate is open or shut, as eviction is
_DARKEST = -60.0  # of a gate's logarithm: e^-60 adds nothing to a sum, and 16 bits can hold it


@dataclass(frozen=True)
class AnswerFitSettings:
    """How heads are fitted through answers.

    steps        0 leaves this out; one step is some questions of one document
    questions    most questions of a step
    kept         least and most share of the entries that gates leave, drawn log-uniformly
    sharpness    of a gate, for a score's difference of 1: at the first step and at the last
    temperature  of the concrete distribution, first and last: small gates are hard, as eviction
                 is, large ones let gradients pass
    averaged     how much the running mean of the weights, which is the result, keeps at each step
    """

    steps: int = 0
    lr: float = 3e-4
    questions: int = 6
    kept: tuple[float, float] = (0.02, 0.3)
    sharpness: tuple[float, float] = (6.0, 12.0)
    temperature: tuple[float, float] = (0.5, 0.2)
    averaged: float = 0.97
    seed: int = 0

    def gates(self, number: int) -> Gates:
        """What gates are at a step, from 0: from the first to the last in equal ratios."""
        part = number / max(self.steps - 1, 1)
        (a, b), (c, d) = self.sharpness, self.temperature
        return Gates(a * (b / a) ** part, c * (d / c) ** part)


@dataclass(frozen=True)
class Gates:
    """How sharply gates tell scores apart, and how hard they are (AnswerFitSettings)."""

    sharpness: float
    temperature: float


@dataclass(frozen=True)
class Step:
    """What a step found, in nats a token: the distance to the full cache, and what was lost."""

    number: int
    kept: float
    kl: float
    lost: float


@dataclass(frozen=True)
class Distance:
    """How far answers are from the full cache's when a share of the entries is kept.

    kl, lost  nats a token: the distance of what the model says, and what the true answers lose
    """

    kept: float
    kl: float
    lost: float


def loss_of(found: Tensor, full: Tensor, answer: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """One answer's loss, and of it the distance to the full cache and the nats lost, a token each.

    found, full  [answer tokens, vocab] fp32 log probabilities, with gates and without
    """
    kl = (full.exp() * (full - found)).sum(dim=-1).mean()
    true = torch.tensor(answer, device=found.device)[:, None]
    lost = full.gather(1, true) - found.gather(1, true)
    return (kl + lost.clamp(min=0).mean()) / 2, kl, lost.mean()


def scores_of(
    model: LoadedModel, head: RetainingHead, recording: Recording, chunk_tokens: int
) -> Tensor:
    """[n_layers, n_kv_heads, n] fp32: what heads say of a document read in chunks."""
    layers = []
    for layer, hidden in enumerate(recording.hidden):
        own = head(hidden.to(model.device, model.compute_dtype), layer).float().T
        layers.append(torch.cat([with_neighbours(s) for s in own.split(chunk_tokens, 1)], dim=1))
    return torch.stack(layers)


def log_gates(scores: Tensor, kept: float, how: Gates, generator: torch.Generator) -> Tensor:
    """The logarithm of each entry's gate: [n_layers, n_kv_heads, n] fp32, at most 0.

    kept  share of the unprotected entries that is expected to stay
    What the rules protect has a gate of 1. The threshold moves with the scores, so that no gradient
    is spent on raising all of them.
    """
    n = scores.shape[-1]
    places = torch.arange(n, device=scores.device)
    ruled = protected(places, EvictionConfig(None), n, last=True).expand_as(scores)
    threshold = _threshold(scores[~ruled], kept, how.sharpness)
    uniform = torch.rand(scores.shape, generator=generator).to(scores.device)
    noise = torch.logit(uniform, eps=1e-6)
    open_by = how.sharpness * (scores - threshold) + noise
    gates = nnf.logsigmoid(open_by / how.temperature)
    return gates.clamp(min=_DARKEST).masked_fill(ruled, 0.0)


def _threshold(scores: Tensor, kept: float, sharpness: float) -> Tensor:
    """Where the expected share is `kept`: found by halving, differentiated by what it solves."""
    known = scores.detach()
    low, high = known.min() - 20 / sharpness, known.max() + 20 / sharpness
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = torch.sigmoid(sharpness * (known - middle)).mean() > kept
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    found = (low + high) / 2
    chance = torch.sigmoid(sharpness * (known - found))
    weight = chance * (1 - chance)
    return found + (weight * (scores - known)).sum() / weight.sum().clamp(min=1e-9)


@torch.no_grad()
def distances(
    model: LoadedModel,
    head: RetainingHead,
    lessons: Sequence[Lesson],
    kept: Sequence[float],
    chunk_tokens: int,
    n_questions: int,
) -> list[Distance]:
    """What eviction by these heads costs answers, at each share kept; means over documents.

    n_questions  of each document, the first ones
    """
    found: list[list[tuple[float, float]]] = [[] for _ in kept]
    for lesson in lessons:
        recording, asked = load_recording(lesson.recording), lesson.asked[:n_questions]
        keys, values = keys_values(model, recording.hidden)
        lengths = question_lengths(asked)
        whole = answer_hidden(model, GatedCache(model, keys, values, None, lengths), asked)
        scores = scores_of(model, head, recording, chunk_tokens)
        for share, so_far in zip(kept, found, strict=True):
            gates = log_gates(scores, share, Gates(_SHUT, 1.0), torch.Generator().manual_seed(0))
            less = answer_hidden(model, GatedCache(model, keys, values, gates, lengths), asked)
            parts = [
                loss_of(log_probs(model, a), log_probs(model, b), answer)
                for a, b, (_, answer) in zip(less, whole, asked, strict=True)
            ]
            _, kl, lost = (torch.stack(part).mean() for part in zip(*parts, strict=True))
            so_far.append((float(kl), float(lost)))
    means = [[sum(part) / len(part) for part in zip(*rows, strict=True)] for rows in found]
    return [Distance(share, kl, lost) for share, (kl, lost) in zip(kept, means, strict=True)]


def fit_through_answers(
    model: LoadedModel,
    head: RetainingHead,
    lessons: Sequence[Lesson],
    settings: AnswerFitSettings,
    chunk_tokens: int,
    state: Path | None = None,
    on_step: Callable[[Step], None] = lambda _: None,
) -> tuple[RetainingHead, float]:
    """Heads that go on from `head`, which stays as it is; the mean of the weights on the way.

    state    a file that a training which was cut off goes on from
    Returns  the heads and the seconds of all steps, those before a cut included
    Raises   InvalidSetting if a step's loss or gradient is not finite
    """
    check_lessons(lessons)
    run = _Run(model, head, settings)
    done = run.restored(state)
    for number in range(done, settings.steps):
        began = time.perf_counter()
        step = run.step(number, lessons, chunk_tokens)
        run.seconds += time.perf_counter() - began
        on_step(step)
        if state is not None and ((number + 1) % _KEPT_EVERY == 0 or number + 1 == settings.steps):
            run.save(state, number + 1)
    return run.result(head), run.seconds


class _Run:
    """Weights on their way: those that move, their running mean, and the optimiser's moments."""

    def __init__(
        self, model: LoadedModel, head: RetainingHead, settings: AnswerFitSettings
    ) -> None:
        self.model, self.settings = model, settings
        self.moving = _copy_of(head, model).to(model.device).requires_grad_(True)
        self.mean = _copy_of(head, model).to(model.device).requires_grad_(False)
        self.optimiser = torch.optim.Adam(
            self.moving.parameters(), settings.lr, betas=(0.9, 0.98), fused=False
        )
        model.model.requires_grad_(False)
        self._known: dict[tuple[Path, int], Tensor] = {}
        self.seconds = 0.0

    def step(self, number: int, lessons: Sequence[Lesson], chunk_tokens: int) -> Step:
        """One document, some of its questions, one share; all drawn by the step's number."""
        draw = random.Random(f"{self.settings.seed}:{number}")
        lesson = _in_turn(lessons, number, self.settings.seed)
        n_asked = len(lesson.asked)
        numbers = draw.sample(range(n_asked), min(self.settings.questions, n_asked))
        asked = [lesson.asked[n] for n in numbers]
        low, high = (math.log(share) for share in self.settings.kept)
        kept = math.exp(draw.uniform(low, high))
        generator = torch.Generator().manual_seed(draw.getrandbits(48))
        recording = load_recording(lesson.recording)
        keys, values = keys_values(self.model, recording.hidden)
        full = self._full(lesson, numbers, keys, values)
        # Two graphs, one after the other: the heads' and the model's need not lie in memory at once
        # with everything between them.
        scores = scores_of(self.model, self.moving, recording, chunk_tokens)
        gates = log_gates(scores, kept, self.settings.gates(number), generator)
        dimmed = gates.detach().requires_grad_(True)
        store = GatedCache(self.model, keys, values, dimmed, question_lengths(asked))
        found = [log_probs(self.model, at) for at in answer_hidden(self.model, store, asked)]
        parts = [loss_of(f, w, a) for f, w, (_, a) in zip(found, full, asked, strict=True)]
        loss, kl, lost = (torch.stack(part).mean() for part in zip(*parts, strict=True))
        loss.backward()
        self.optimiser.zero_grad()
        gates.backward(dimmed.grad)
        norm = torch.nn.utils.clip_grad_norm_(self.moving.parameters(), 1.0)
        if not bool(torch.isfinite(norm) and torch.isfinite(loss.detach())):
            raise InvalidSetting(
                f"Step {number + 1} through answers ran away: its loss or gradient is not finite.",
                "Go on from other heads, or train by labels alone.",
            )
        for group in self.optimiser.param_groups:
            group["lr"] = self._lr(number)
        self.optimiser.step()
        self._average(number)
        return Step(number, kept, float(kl.detach()), float(lost.detach()))

    @torch.no_grad()
    def _full(
        self, lesson: Lesson, numbers: Sequence[int], keys: list[Tensor], values: list[Tensor]
    ) -> list[Tensor]:
        """Per question [answer tokens, vocab] fp32: log probabilities with everything kept."""
        for number in numbers:
            if (lesson.recording, number) in self._known:
                continue
            # Always in the same company: sums in 16 bits depend on it, and a run that was cut off
            # shall end as one that was not.
            first = number - number % self.settings.questions
            asked = lesson.asked[first : first + self.settings.questions]
            whole = GatedCache(self.model, keys, values, None, question_lengths(asked))
            for place, hidden in enumerate(answer_hidden(self.model, whole, asked)):
                self._known[lesson.recording, first + place] = hidden.clone()
        return [log_probs(self.model, self._known[lesson.recording, n]) for n in numbers]

    def _lr(self, number: int) -> float:
        warm = min(1.0, (number + 1) / _WARMUP_STEPS)
        cosine = (1 + math.cos(math.pi * number / self.settings.steps)) / 2
        return self.settings.lr * warm * (_FINAL_LR + (1 - _FINAL_LR) * cosine)

    @torch.no_grad()
    def _average(self, number: int) -> None:
        keep = min(self.settings.averaged, 1 - 1 / (number + 1))
        pairs = zip(self.mean.parameters(), self.moving.parameters(), strict=True)
        for mean, now in pairs:
            mean.lerp_(now, 1 - keep)

    def save(self, path: Path, n_steps: int) -> None:
        """Write everything that a later run needs, atomically.

        Raises NotEnoughDisk if the disk is full.
        """
        tensors = {f"moving.{n}": p.detach() for n, p in self.moving.named_parameters()}
        tensors |= {f"mean.{n}": p for n, p in self.mean.named_parameters()}
        for name, parameter in self.moving.named_parameters():
            moments = self.optimiser.state[parameter]
            tensors |= {f"{m}.{name}": moments[m] for m in ("exp_avg", "exp_avg_sq")}
        plain = {n: t.cpu().contiguous() for n, t in tensors.items()}
        facts = {"n_steps": str(n_steps), "seconds": f"{self.seconds:.3f}"}
        write_tensors(path, plain, "A training's steps through answers", facts)

    @torch.no_grad()
    def restored(self, path: Path | None) -> int:
        """Take back what `save` wrote, if there is something; returns the steps done."""
        if path is None or not path.exists():
            return 0
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                n_steps = int(file.metadata()["n_steps"])
                self.seconds = float(file.metadata()["seconds"])
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ScorerUnavailable(
                f"The steps of an earlier training in {path.name} cannot be read: {error}.",
                f"Delete {path} to begin them anew.",
            ) from error
        means = dict(self.mean.named_parameters())
        for name, parameter in self.moving.named_parameters():
            parameter.copy_(found[f"moving.{name}"])
            means[name].copy_(found[f"mean.{name}"])
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(n_steps)),
                **{m: found[f"{m}.{name}"].to(parameter.device) for m in ("exp_avg", "exp_avg_sq")},
            }
        return n_steps

    def result(self, head: RetainingHead) -> RetainingHead:
        """The mean as heads of the first ones' dtype and place, rounded as their file will be."""
        out = _copy_of(head, self.model).to(head.w1.device).requires_grad_(False)
        for parameter, mean in zip(out.parameters(), self.mean.parameters(), strict=True):
            parameter.data.copy_(mean.half())
        return out


def _copy_of(head: RetainingHead, model: LoadedModel) -> RetainingHead:
    with torch.random.fork_rng(devices=[]):  # the start values are overwritten at once
        copy = RetainingHead(model.geometry, head.w1.shape[1])
    copy.load_state_dict({n: p.detach().float() for n, p in head.state_dict().items()})
    return copy


def _in_turn(lessons: Sequence[Lesson], number: int, seed: int) -> Lesson:
    """Every document once, in an order of its own each time round."""
    epoch, place = divmod(number, len(lessons))
    order = list(range(len(lessons)))
    random.Random(f"{seed}:epoch {epoch}").shuffle(order)
    return lessons[order[place]]
