"""Retaining heads: small trained networks that say which cache entries a reader will need.

Two kinds, one file format. `LocretHead` is the published one (arXiv 2410.01805): per layer
fc2(act(fc1([q; k; v]))) on un-rotated projections, without biases. `RetainingHead` is ours: per
layer a two-layer network on the attention's input, trained on labels in log space that compare
across heads and layers, so that one budget over all of them is possible.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

import kernels
from engine.errors import InvalidSetting, ScorerUnavailable
from engine.eviction import ALLOCATIONS, Allocation, Profile
from engine.geometry import ModelGeometry
from engine.scoring import LayerStep, Scorer

if TYPE_CHECKING:
    from engine.loader import LoadedModel

FORMAT = "longread-heads-1"
# A fact is a passage: what stands beside something needed makes sense of it. Measured in
# heads/LOG.md; pooling over neighbours is SnapKV's (arXiv 2404.14469), there of attention's votes.
NEIGHBOURHOOD_TOKENS = 33  # 16 on either side, and the entry itself
NEIGHBOURHOOD_SHARE = 0.5
RETAINING_WIDTH, LOCRET_WIDTH = 256, 1024  # inner units a layer, unless a training says otherwise
_ACTIVATIONS = {"silu": nn.functional.silu, "gelu": nn.functional.gelu, "relu": nn.functional.relu}


@dataclass
class HeadCard:
    """What a file of heads says about itself: base model, label, data, cost, commit, licence.

    start     the heads that the training went on from: name of the file and its SHA-256, or ""
    held_out  a row a share kept: what answers about documents that taught nothing lost before a fit
              through answers and after it (heads.answer_fit.Distance)
    """

    base_model: str = ""
    label: str = ""
    data: str = ""
    cost: str = ""
    commit: str = ""
    licence: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    held_out: list[dict[str, float]] = field(default_factory=list)
    start: str = ""


class LocretHead(nn.Module):
    """Locret's head: fc1 [n_layers, width, (n_q_heads + 2 n_kv_heads) head_dim], fc2 [n_layers,
    n_kv_heads, width]; scores are raw numbers that stand for pre-softmax logits.
    """

    kind = "locret"

    def __init__(
        self, geometry: ModelGeometry, width: int = LOCRET_WIDTH, activation: str = "silu"
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ScorerUnavailable(f"There is no activation '{activation}' for retaining heads.")
        g = geometry
        n_in = (g.n_q_heads + 2 * g.n_kv_heads) * g.head_dim
        self.activation = activation
        self.fc1 = nn.Parameter(torch.randn(g.n_layers, width, n_in) * 0.02)
        self.fc2 = nn.Parameter(torch.randn(g.n_layers, g.n_kv_heads, width) * 0.02)

    def forward(self, x: Tensor, layer: int) -> Tensor:
        """x [n, n_in], the flat [q; k; v] -> scores [n, n_kv_heads] in x's dtype."""
        inner = _ACTIVATIONS[self.activation](x @ self.fc1[layer].to(x.dtype).T)
        return inner @ self.fc2[layer].to(x.dtype).T


class RetainingHead(nn.Module):
    """Our head: w1 [n_layers, width, hidden_size], b1, w2 [n_layers, n_kv_heads, width], b2."""

    kind = "retaining"
    activation = "gelu"

    def __init__(self, geometry: ModelGeometry, width: int = RETAINING_WIDTH) -> None:
        super().__init__()
        g = geometry
        self.w1 = nn.Parameter(torch.randn(g.n_layers, width, g.hidden_size) * g.hidden_size**-0.5)
        self.b1 = nn.Parameter(torch.zeros(g.n_layers, width))
        self.w2 = nn.Parameter(torch.randn(g.n_layers, g.n_kv_heads, width) * width**-0.5)
        self.b2 = nn.Parameter(torch.zeros(g.n_layers, g.n_kv_heads))

    def forward(self, x: Tensor, layer: int) -> Tensor:
        """x [n, hidden_size], the attention's input -> scores [n, n_kv_heads], log importance."""
        inner = torch.addmm(self.b1[layer].to(x.dtype), x, self.w1[layer].to(x.dtype).T)
        inner = nn.functional.gelu(inner)
        return torch.addmm(self.b2[layer].to(x.dtype), inner, self.w2[layer].to(x.dtype).T)


def loaded_nbytes(kind: str, geometry: ModelGeometry) -> int:
    """Bytes of heads of the usual width once they are loaded, in fp32; 0 for other scorers."""
    g = geometry
    if kind == LocretHead.kind:
        n_in = (g.n_q_heads + 2 * g.n_kv_heads) * g.head_dim
        return 4 * g.n_layers * LOCRET_WIDTH * (n_in + g.n_kv_heads)
    if kind == RetainingHead.kind:
        row = RETAINING_WIDTH * (g.hidden_size + 1)
        return 4 * g.n_layers * (row + (RETAINING_WIDTH + 1) * g.n_kv_heads)
    return 0


def flat_qkv(step: LayerStep) -> Tensor:
    """The head's input as Locret lays it out: [n, (n_q_heads + 2 n_kv_heads) head_dim]."""
    return torch.cat([step.q, step.k, step.v]).transpose(0, 1).flatten(1)


def with_neighbours(scores: Tensor) -> Tensor:
    """scores [n_kv_heads, n] -> half an entry's own score, half the mean of its neighbourhood's.

    The neighbourhood ends where the scores do, as at a chunk's edges.
    """
    aside = NEIGHBOURHOOD_TOKENS // 2
    around = nn.functional.avg_pool1d(
        scores[None], NEIGHBOURHOOD_TOKENS, stride=1, padding=aside, count_include_pad=False
    )[0]
    return torch.lerp(scores, around, NEIGHBOURHOOD_SHARE)


class HeadScorer(Scorer):
    """Scores with a trained head of either kind; ours lets an entry's neighbours have a say.

    profile     how much each layer and KV head keeps, if the file of heads says so
    allocation  how a budget is shared out unless somebody chooses; None: by the profile if there is
                one, else as the kind's scores compare
    """

    def __init__(
        self,
        head: LocretHead | RetainingHead,
        card: HeadCard,
        digest: str,
        profile: Profile | None = None,
        allocation: Allocation | None = None,
    ) -> None:
        self.head, self.card, self._digest, self.profile = head, card, digest, profile
        self.name = head.kind
        self.wants_hidden = isinstance(head, RetainingHead)
        if allocation is not None:
            self.allocation = allocation
        elif profile is not None:
            self.allocation = "profile"
        elif isinstance(head, LocretHead):
            self.allocation = "uniform"  # its scores stand for raw logits: no scale is shared

    @torch.inference_mode()
    def score(self, step: LayerStep) -> Tensor:
        """See Scorer; the head computes in the activations' dtype, scores are fp32."""
        scores = self._of_entries(step)
        return with_neighbours(scores) if isinstance(self.head, RetainingHead) else scores

    def _of_entries(self, step: LayerStep) -> Tensor:
        """What the head says of each entry by itself: [n_kv_heads, n] fp32."""
        if kernels.fuses(step.k.device):
            return self._fused(step)
        x = step.hidden if self.wants_hidden else flat_qkv(step)
        assert x is not None
        out: Tensor = self.head(x, step.layer)
        return out.float().T

    def _fused(self, step: LayerStep) -> Tensor:
        """The same by one kernel, without the flat input and the inner layer in memory."""
        head, n = self.head, step.layer
        if isinstance(head, LocretHead):
            first, second = head.fc1[n], head.fc2[n]
            return kernels.locret_scores(step.q, step.k, step.v, first, second, head.activation)
        assert step.hidden is not None
        return kernels.retaining_scores(step.hidden, head.w1[n], head.b1[n], head.w2[n], head.b2[n])

    def digest(self) -> str:
        """Kind and weights: another file of heads is another scorer."""
        profile = hashlib.sha256(repr(self.profile).encode()).hexdigest()[:8]
        name = f"{self.name}:{self._digest}:{profile}"
        if isinstance(self.head, LocretHead):
            return name
        return f"{name}:{NEIGHBOURHOOD_SHARE:g} of {NEIGHBOURHOOD_TOKENS}"


def load_heads(path: Path, model: LoadedModel) -> HeadScorer:
    """Heads of either kind, from our file or from a published one.

    path  a .safetensors file of ours; or one with the published layout, .bin or .safetensors
    Raises ScorerUnavailable if the file is missing, damaged, or made for another model.
    """
    if not path.is_file():
        raise ScorerUnavailable(
            f"There are no retaining heads at {path}.",
            "Train them (train-heads), or choose another scorer.",
        )
    tensors, metadata = _read(path)
    profile = _profile(path, tensors, model.geometry)
    if metadata.get("format") == FORMAT:
        head, card = _ours(path, tensors, metadata, model.geometry)
    else:
        head, card = _published(path, tensors, model)
    head.requires_grad_(False).to(model.device)
    return HeadScorer(head, card, head_digest(head), profile, _allocation(path, metadata, profile))


def save_heads(
    path: Path,
    head: LocretHead | RetainingHead,
    card: HeadCard,
    profile: Profile | None = None,
    allocation: Allocation | None = None,
) -> None:
    """Write heads in fp16 with their card, atomically.

    profile     for allocation "profile"
    allocation  what suits the heads; None: the profile if there is one (HeadScorer)
    """
    from safetensors.torch import save

    metadata = {
        "format": FORMAT,
        "kind": head.kind,
        "activation": head.activation,
        "card": json.dumps(card.__dict__, sort_keys=True),
    }
    if allocation is not None:
        metadata["allocation"] = allocation
    tensors = {name: p.detach().half().cpu().contiguous() for name, p in head.named_parameters()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidSetting(
                f"The training ran away: {name} is beyond 16 bits. Nothing was written.",
                "Train with another loss, or more text.",
            )
    if profile is not None:
        tensors["profile"] = torch.tensor(profile.shares)
        tensors["profile_kept"] = torch.tensor(profile.kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(save(tensors, metadata))
    temporary.replace(path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; pickles are read as weights only."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, ValueError, RuntimeError, pickle.PickleError) as e:
        raise ScorerUnavailable(
            f"The heads in {path.name} cannot be read: {e}.", "Fetch or train them again."
        ) from e
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise ScorerUnavailable(f"{path.name} holds no table of tensors.", "Fetch it again.")
    return dict(loaded), {}


def _profile(path: Path, tensors: dict[str, Tensor], geometry: ModelGeometry) -> Profile | None:
    """Take a profile out of a file's tensors."""
    shares, kept = tensors.pop("profile", None), tensors.pop("profile_kept", None)
    if shares is None or kept is None:
        return None
    if shares.shape != (kept.numel(), geometry.n_layers, geometry.n_kv_heads):
        raise ScorerUnavailable(f"{path.name} has a profile of another model's shape.")
    if not bool((torch.isfinite(shares) & (shares > 0)).all()):
        raise ScorerUnavailable(f"{path.name} is damaged: a share of its profile is not positive.")
    tables = tuple(tuple(tuple(row) for row in table) for table in shares.tolist())
    try:
        return Profile(tuple(kept.flatten().tolist()), tables)
    except InvalidSetting as error:
        raise ScorerUnavailable(f"{path.name} is damaged: {error.cause}") from error


def _allocation(path: Path, metadata: dict[str, str], profile: Profile | None) -> Allocation | None:
    """What a file of heads says of how a budget suits them."""
    found = metadata.get("allocation")
    if found is None:
        return None
    if found not in ALLOCATIONS or (found == "profile" and profile is None):
        raise ScorerUnavailable(
            f"{path.name} asks for the allocation '{found}', which it cannot have.",
            "Fetch or train the heads again.",
        )
    return cast(Allocation, found)


def _ours(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], geometry: ModelGeometry
) -> tuple[LocretHead | RetainingHead, HeadCard]:
    kind = metadata.get("kind")
    first = tensors.get("w1" if kind == "retaining" else "fc1")
    if kind not in ("retaining", "locret") or first is None or first.dim() != 3:
        raise ScorerUnavailable(f"{path.name} holds no retaining heads of a known kind.")
    with torch.device("meta"):  # no start values: the file's take their place
        head: LocretHead | RetainingHead = (
            RetainingHead(geometry, first.shape[1])
            if kind == "retaining"
            else LocretHead(geometry, first.shape[1], metadata.get("activation", "silu"))
        )
    _fill(path, head, tensors)
    try:
        return head, HeadCard(**json.loads(metadata.get("card", "{}")))
    except (ValueError, TypeError) as error:
        raise ScorerUnavailable(f"The card of the heads in {path.name} cannot be read.") from error


def _published(
    path: Path, tensors: dict[str, Tensor], model: LoadedModel
) -> tuple[LocretHead, HeadCard]:
    """Locret's layout: model.layers.{i}.self_attn.fc1.weight and fc2.weight, nothing else."""
    n_layers = model.geometry.n_layers
    names = {
        part: [f"model.layers.{i}.self_attn.{part}.weight" for i in range(n_layers)]
        for part in ("fc1", "fc2")
    }
    wanted = {name for part in names.values() for name in part}
    if set(tensors) != wanted:
        odd = sorted(set(tensors) ^ wanted)
        raise ScorerUnavailable(
            f"{path.name} does not hold heads for {n_layers} layers: {len(odd)} names differ, "
            f"the first is '{odd[0]}'.",
            "Use heads that were made for this model.",
        )
    try:
        stacked = {part: torch.stack([tensors[n] for n in names[part]]) for part in names}
    except RuntimeError as error:
        raise ScorerUnavailable(f"The layers in {path.name} differ in size: {error}") from error
    activation = str(getattr(model.model.config, "hidden_act", "silu"))
    width = stacked["fc1"].shape[1] if stacked["fc1"].dim() == 3 else 1  # 1 fits no file
    with torch.device("meta"):
        head = LocretHead(model.geometry, width, activation)
    _fill(path, head, stacked)
    return head, HeadCard(base_model=model.name, label="cis", data="published")


def _fill(path: Path, head: nn.Module, tensors: dict[str, Tensor]) -> None:
    parameters = dict(head.named_parameters())
    for name in sorted(set(parameters) | set(tensors)):
        ours, theirs = parameters.get(name), tensors.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            wanted = None if ours is None else list(ours.shape)
            found = None if theirs is None else list(theirs.shape)
            raise ScorerUnavailable(
                f"{path.name} was made for another model: {name} is {found}, not {wanted}.",
                "Use heads that were made for this model.",
            )
        if not bool(torch.isfinite(theirs).all()):
            raise ScorerUnavailable(f"{path.name} is damaged: {name} is not finite.")
        setattr(head, name, nn.Parameter(theirs.float()))


def head_digest(head: nn.Module) -> str:
    """SHA-256 over names and weights, shortened."""
    total = hashlib.sha256()
    for name, parameter in head.named_parameters():
        total.update(name.encode())
        total.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:32]
