"""Fitting heads to recordings: layer by layer, independent small regressions.

No gradient crosses the model: inputs and labels are on disk (heads.recordings). Inputs and targets
are standardised for the fit, and the scaling is folded into the weights at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.attention import decoder_of
from engine.errors import InvalidSetting
from engine.eviction import Profile
from engine.files import read_json, write_json
from heads.losses import BY_NAME
from heads.recordings import Recording
from heads.retaining import LocretHead, RetainingHead

if TYPE_CHECKING:
    from engine.loader import LoadedModel

LEAST_SHARE = 1e-3
REPLAY_SHARE = 0.75  # of a blend (heads/LOG.md, 2026-11-27)
EDGES = (0.25, 0.125, 0.0625, 0.03125)  # kept fractions whose thresholds `bce` learns

_LEAST_SCHEDULED = 10  # steps
FIT_VERSION = 3  # raised when a target, a loss or the fitting changes: kept fits are then stale


@dataclass(frozen=True)
class FitSettings:
    """How heads are fitted.

    label   a recording's label, or `blend`: the questions' and the replay's label together, each
            standardised over the document, or the one there is; documents without the label are
            left out
    replay_share  the replay's part of a blend; the questions' is the rest
    """

    kind: str = "retaining"
    label: str = "blend"
    loss: str = "mse"
    width: int = 256
    epochs: float = 5.0
    lr: float = 2e-3
    weight_decay: float = 0.01
    batch_tokens: int = 1024
    seed: int = 0
    replay_share: float = REPLAY_SHARE


@dataclass
class FitReport:
    """What came of a fit: per layer the training curve [(step, loss)] and the held-out loss.

    Of a fit through answers there is one curve, of nats from the full cache, and nothing held out.
    """

    curves: list[list[tuple[int, float]]] = field(default_factory=list)
    held_loss: list[float] = field(default_factory=list)
    held_rank: list[float] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it, so that a later run that fits nothing anew can draw it even so."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> FitReport | None:
        """What was written; None where there is nothing."""
        values: Any = read_json(path)
        if values is None:
            return None
        curves = [[(int(step), float(loss)) for step, loss in c] for c in values.pop("curves")]
        return cls(curves, **values)


@dataclass(frozen=True)
class _LayerData:
    """One layer's tokens: x [n, n_in] fp32, y [n, n_kv_heads] fp32, edges [n, len(EDGES)]."""

    x: Tensor
    y: Tensor
    edges: Tensor


def has_label(recording: Recording, label: str) -> bool:
    """Whether `target` can be had of a recording."""
    wanted = ("questions", "kvzip_plus") if label == "blend" else (label,)
    return any(name in recording.labels for name in wanted)


def target(recording: Recording, label: str, replay_share: float = REPLAY_SHARE) -> Tensor:
    """The label heads learn: [n_layers, n_kv_heads, n] fp32, higher = keep.

    A label's level hangs on how many probes there were (a maximum over more of them is higher), so
    `blend` brings each label of a document to mean 0 and variance 1 over all layers and heads
    before it takes the mean, weighted; what heads and layers are worth to one another stays.
    """
    found = recording.labels
    if label != "blend":
        return found[label].float()
    weights = {"questions": 1 - replay_share, "kvzip_plus": replay_share}
    parts = {k: _standard(found[k].float()) for k in weights if k in found}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return torch.stack([weights[k] * part for k, part in parts.items()]).sum(dim=0)


def _standard(label: Tensor) -> Tensor:
    return (label - label.mean()) / label.std().clamp(min=1e-6)


def edges_of(labels: Tensor) -> Tensor:
    """The label's value at each budget's edge, over all layers and heads: [len(EDGES)]."""
    flat = labels.flatten().sort(descending=True).values
    return torch.stack([flat[min(int(len(flat) * kept), len(flat) - 1)] for kept in EDGES])


def fit(
    model: LoadedModel,
    recordings: Sequence[Recording],
    held: Sequence[Recording],
    settings: FitSettings,
    start: RetainingHead | LocretHead | None = None,
    on_layer: Callable[[int, int, float], None] | None = None,
) -> tuple[RetainingHead | LocretHead, FitReport]:
    """Fit one head a layer, on the CPU, where recordings lie.

    held      recordings that are only looked at, for the report
    start     heads to go on from (domain adaptation); they stay as they are
    on_layer  (layers done, layers in all, held-out rank correlation of the last one)
    """
    torch.manual_seed(settings.seed)
    g = model.geometry
    if start is not None and start.kind != settings.kind:
        raise InvalidSetting(
            f"The heads to go on from are of the kind '{start.kind}', not '{settings.kind}'.",
            f"Train with --kind {start.kind}.",
        )
    head = _fresh(model, settings) if start is None else deepcopy(start).cpu()
    head.requires_grad_(False)
    report = FitReport()
    recordings = [r for r in recordings if has_label(r, settings.label)]
    held = [r for r in held if has_label(r, settings.label)]
    if not recordings:
        raise InvalidSetting(
            f"No document has the label '{settings.label}'.", "Choose another, or give questions."
        )
    wanted = (settings.label, settings.replay_share)
    targets = [target(r, *wanted) for r in recordings]
    held_targets = [target(r, *wanted) for r in held]
    edges = [edges_of(t) for t in targets]
    held_edges = [edges_of(t) for t in held_targets]
    for layer in range(g.n_layers):
        train = _gather(model, recordings, targets, edges, layer, settings.kind)
        test = _gather(model, held, held_targets, held_edges, layer, settings.kind)
        curve = _fit_layer(head, layer, train, settings)
        loss, rank = _look(head, layer, test, settings)
        report.curves.append(curve)
        report.held_loss.append(loss)
        report.held_rank.append(rank)
        if on_layer is not None:
            on_layer(layer + 1, g.n_layers, rank)
    return head, report


def _fresh(model: LoadedModel, settings: FitSettings) -> RetainingHead | LocretHead:
    """Heads that have learnt nothing."""
    if settings.kind == "retaining":
        return RetainingHead(model.geometry, settings.width)
    return LocretHead(model.geometry, settings.width, str(model.model.config.hidden_act))


def _gather(
    model: LoadedModel,
    recordings: Sequence[Recording],
    targets: Sequence[Tensor],
    edges: Sequence[Tensor],
    layer: int,
    kind: str,
) -> _LayerData:
    if not recordings:
        return _LayerData(*(torch.empty(0, 1) for _ in range(3)))
    xs = [_input(model, r.hidden[layer], layer, kind) for r in recordings]
    ys = [t[layer].T for t in targets]
    rows = [e.expand(len(y), -1) for e, y in zip(edges, ys, strict=True)]
    return _LayerData(torch.cat(xs), torch.cat(ys), torch.cat(rows))


@torch.inference_mode()
def _input(model: LoadedModel, hidden: Tensor, layer: int, kind: str) -> Tensor:
    """What a head of this kind sees of a layer: the attention's input, or its projections."""
    if kind == "retaining":
        return hidden.float()
    parts = _projections(model, hidden, layer, "qkv")
    return torch.cat([p.flatten(1) for p in parts], dim=-1).float().cpu()


@torch.no_grad()
def keys_values(model: LoadedModel, hidden: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """A recorded document's cache, from hidden [n_layers, n, hidden_size].

    Returns keys, un-rotated, and values, per layer [n_kv_heads, n, head_dim].
    """
    found = [_projections(model, x, layer, "kv") for layer, x in enumerate(hidden)]
    return [k.transpose(0, 1) for k, _ in found], [v.transpose(0, 1) for _, v in found]


def _projections(model: LoadedModel, hidden: Tensor, layer: int, names: str) -> list[Tensor]:
    """Of `q`, `k` and `v` those named, normalised where the model does: [n, heads, head_dim]."""
    attention: Any = decoder_of(model.model).layers[layer].self_attn
    x = hidden.to(model.compute_dtype).to(model.device)
    g = model.geometry
    heads = {"q": g.n_q_heads, "k": g.n_kv_heads, "v": g.n_kv_heads}
    if hasattr(attention, "qkv_proj"):
        whole = attention.qkv_proj(x).unflatten(-1, (-1, g.head_dim))
        parts = dict(zip("qkv", whole.split(list(heads.values()), dim=1), strict=True))
        return [parts[name] for name in names]
    found = []
    for name in names:
        out = getattr(attention, f"{name}_proj")(x).unflatten(-1, (heads[name], g.head_dim))
        norm = getattr(attention, f"{name}_norm", None)
        found.append(out if norm is None else norm(out))
    return found


def _fit_layer(
    head: RetainingHead | LocretHead, layer: int, data: _LayerData, settings: FitSettings
) -> list[tuple[int, float]]:
    """Fit one layer's slice of the stacked parameters in place."""
    scaled = isinstance(head, RetainingHead)
    net = _Standardised.of(head, layer, data) if scaled else _Slice(head, layer)
    loss_of = BY_NAME[settings.loss]
    steps = max(1, int(settings.epochs * len(data.x) / settings.batch_tokens))
    optimiser = torch.optim.AdamW(
        net.parameters(), settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    # A warm-up of one step, the tenth of ten, would be divided by nothing.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.lr, total_steps=max(steps, _LEAST_SCHEDULED) + 1, pct_start=0.1
    )
    curve: list[tuple[int, float]] = []
    for step, rows in enumerate(_batches(len(data.x), settings, steps)):
        loss = loss_of(net(data.x[rows]), data.y[rows], data.edges[rows])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % max(1, steps // 20) == 0 or step == steps - 1:
            curve.append((step, float(loss.detach())))
    net.fold(head, layer)
    return curve


def _batches(n: int, settings: FitSettings, steps: int) -> Iterator[Tensor]:
    """Row indices: shuffled tokens, or for Locret's smoothness runs of neighbours."""
    size = min(settings.batch_tokens, n)
    for _ in range(steps):
        if settings.loss == "locret":
            first = int(torch.randint(0, n - size + 1, ()))
            yield torch.arange(first, first + size)
        else:
            yield torch.randint(0, n, (size,))


class _Slice(nn.Module):
    """A Locret layer as a module of its own."""

    def __init__(self, head: LocretHead | RetainingHead, layer: int) -> None:
        super().__init__()
        self._act = head.activation
        self.parts = nn.ParameterDict(
            {n: nn.Parameter(p[layer].detach().clone()) for n, p in head.named_parameters()}
        )

    def forward(self, x: Tensor) -> Tensor:
        act = getattr(nn.functional, self._act)
        out: Tensor = act(x @ self.parts["fc1"].T) @ self.parts["fc2"].T
        return out

    def fold(self, head: LocretHead | RetainingHead, layer: int) -> None:
        for name, parameter in head.named_parameters():
            parameter.data[layer] = self.parts[name].detach()


class _Standardised(_Slice):
    """One of our layers on inputs of mean 0 and variance 1, predicting such targets."""

    @classmethod
    def of(cls, head: RetainingHead, layer: int, data: _LayerData) -> _Standardised:
        net = cls(head, layer)
        net.mean, net.std = data.x.mean(0), data.x.std(0).clamp(min=1e-3)
        net.y_mean, net.y_std = data.y.mean(0), data.y.std(0).clamp(min=1e-3)
        with torch.no_grad():  # unfold what an earlier fit folded in; a fresh head starts as it is
            if bool((head.b1[layer] != 0).any()):
                net.parts["b1"] += net.parts["w1"] @ net.mean
                net.parts["w1"] *= net.std
                net.parts["b2"] -= net.y_mean
                net.parts["b2"] /= net.y_std
                net.parts["w2"] /= net.y_std[:, None]
        return net

    def forward(self, x: Tensor) -> Tensor:
        p = self.parts
        inner = nn.functional.gelu((x - self.mean) / self.std @ p["w1"].T + p["b1"])
        out: Tensor = (inner @ p["w2"].T + p["b2"]) * self.y_std + self.y_mean
        return out

    @torch.no_grad()
    def fold(self, head: LocretHead | RetainingHead, layer: int) -> None:
        assert isinstance(head, RetainingHead)
        p = self.parts
        w1 = p["w1"] / self.std
        head.w1.data[layer], head.b1.data[layer] = w1, p["b1"] - w1 @ self.mean
        head.w2.data[layer] = p["w2"] * self.y_std[:, None]
        head.b2.data[layer] = p["b2"] * self.y_std + self.y_mean


@torch.inference_mode()
def _look(
    head: RetainingHead | LocretHead, layer: int, data: _LayerData, settings: FitSettings
) -> tuple[float, float]:
    """Held-out loss and rank correlation of one layer."""
    if not len(data.x):
        return float("nan"), float("nan")
    found = head(data.x, layer)
    loss = float(BY_NAME[settings.loss](found, data.y, data.edges))
    return loss, _rank_correlation(found, data.y)


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, mean over heads."""
    ranks = [x.argsort(0).argsort(0).float() for x in (a, b)]
    centred = [r - r.mean(0) for r in ranks]
    top = (centred[0] * centred[1]).sum(0)
    return float((top / (centred[0].norm(dim=0) * centred[1].norm(dim=0)).clamp(min=1e-9)).mean())


PROFILE_KEPT = (0.03125, 0.0625, 0.125, 0.25, 0.5)


def profile_of(labels: Sequence[Tensor]) -> Profile:
    """Mean share of each layer and KV head in the best entries of [n_layers, n_kv_heads, n] labels.

    A share is never quite 0, so that every head keeps something.
    """
    tables = []
    for kept in PROFILE_KEPT:
        shares = torch.stack([_share_of_best(label, kept) for label in labels]).mean(0)
        tables.append(tuple(tuple(row) for row in (shares + LEAST_SHARE).tolist()))
    return Profile(PROFILE_KEPT, tuple(tables))


def _share_of_best(label: Tensor, kept: float) -> Tensor:
    """How much of each head is among the best `kept` of all entries: [n_layers, n_kv_heads]."""
    flat = label.flatten()
    best = torch.zeros_like(flat)
    best[flat.topk(max(1, int(len(flat) * kept))).indices] = 1
    return best.reshape(label.shape).mean(-1)
