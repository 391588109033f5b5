"""The retaining heads in one kernel: scores as the plain networks give them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from kernels import retaining as plain
from tests.kernels.aot import SHARED_LIMIT, compile_all, interpret_without_gpu, recorded
from tests.kernels.poison import poisoned_memory

if find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)
DEVICE = interpret_without_gpu()

from kernels import triton_retaining as fused  # noqa: E402

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# The interpreter multiplies in fp32 whatever the input; only the order of sums differs. On a card
# the inner layer is rounded to the input's dtype.
CLOSE_ON = {
    "cpu": {F32: 1e-5, BF16: 1e-5, F16: 1e-5},
    "cuda": {F32: 1e-4, BF16: 2e-2, F16: 3e-3},
}
# Spilled bytes a thread, stores and loads together; 88 were seen, in fp32 for capability 90.
SPILLS = 128


@dataclass(frozen=True)
class Ours:
    """Sizes of our head."""

    n: int
    hidden: int
    width: int
    n_kv_heads: int
    dtype: torch.dtype

    def inputs(self, device: str = DEVICE) -> list[Tensor]:
        """x, w1, b1, w2, b2."""
        draw = torch.Generator().manual_seed(self.n)
        shapes = [(self.n, self.hidden), (self.width, self.hidden), (self.width,)]
        shapes += [(self.n_kv_heads, self.width), (self.n_kv_heads,)]
        scales = (1.0, self.hidden**-0.5, 0.5, self.width**-0.5, 0.5)
        tensors = [
            (torch.randn(shape, generator=draw) * scale).to(device)
            for shape, scale in zip(shapes, scales, strict=True)
        ]
        return [tensors[0].to(self.dtype), *tensors[1:]]


@dataclass(frozen=True)
class Locret:
    """Sizes of Locret's head; `group` query heads share a KV head."""

    n: int
    n_kv_heads: int
    group: int
    head_dim: int
    width: int
    dtype: torch.dtype

    def inputs(self, device: str = DEVICE) -> list[Tensor]:
        """q, k, v, fc1, fc2; q and v lie token after token, as projections give them."""
        draw = torch.Generator().manual_seed(self.n)
        n_q_heads = self.n_kv_heads * self.group
        n_in = (n_q_heads + 2 * self.n_kv_heads) * self.head_dim
        q = torch.randn(self.n, n_q_heads, self.head_dim, generator=draw).transpose(0, 1)
        k = torch.randn(self.n_kv_heads, self.n, self.head_dim, generator=draw)
        v = torch.randn(self.n, self.n_kv_heads, self.head_dim, generator=draw).transpose(0, 1)
        fc1 = torch.randn(self.width, n_in, generator=draw) * n_in**-0.5
        fc2 = torch.randn(self.n_kv_heads, self.width, generator=draw) * self.width**-0.5
        rows = [t.to(device=device, dtype=self.dtype) for t in (q, k, v)]
        return [*rows, fc1.to(device), fc2.to(device)]


def assert_close(scores: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    close = CLOSE_ON[DEVICE][dtype]
    torch.testing.assert_close(scores, expected, atol=close, rtol=close)


@pytest.mark.parametrize(
    "sizes",
    [
        Ours(1, 896, 256, 2, BF16),
        Ours(63, 192, 160, 8, F32),
        Ours(63, 72, 160, 3, F16),
        Ours(257, 64, 256, 1, BF16),
    ],
    ids=str,
)
def test_our_head(sizes: Ours) -> None:
    inputs = sizes.inputs()
    with poisoned_memory() as given:
        scores = fused.retaining_scores(*inputs)
    assert given and scores.dtype == F32
    expected = plain.retaining_scores(*inputs)
    assert_close(scores, expected, sizes.dtype)


@pytest.mark.parametrize("activation", sorted(plain.ACTIVATIONS))
@pytest.mark.parametrize(
    "sizes",
    [
        Locret(1, 2, 7, 64, 160, BF16),
        Locret(63, 1, 8, 96, 256, F16),
        Locret(63, 2, 1, 128, 300, F32),
        Locret(63, 1, 3, 256, 160, BF16),
        Locret(1, 2, 6, 128, 160, F16),
        Locret(3, 1, 4, 64, 160, BF16),
        Locret(3, 2, 5, 96, 160, F32),
    ],
    ids=str,
)
def test_locrets_head(sizes: Locret, activation: str) -> None:
    *rows, fc1, fc2 = sizes.inputs()
    with poisoned_memory() as given:
        scores = fused.locret_scores(*rows, fc1, fc2, activation)
    assert given and scores.dtype == F32
    expected = plain.locret_scores(*rows, fc1, fc2, activation)
    assert_close(scores, expected, sizes.dtype)


def test_many_rows_of_locrets_head() -> None:
    sizes = Locret(257, 1, 2, 64, 160, BF16)
    *rows, fc1, fc2 = sizes.inputs()
    with poisoned_memory() as given:
        scores = fused.locret_scores(*rows, fc1, fc2, "silu")
    assert given
    expected = plain.locret_scores(*rows, fc1, fc2, "silu")
    assert_close(scores, expected, sizes.dtype)


def test_what_lies_beside_a_row_is_not_read() -> None:
    x, *weights = Ours(5, 72, 160, 2, F32).inputs()
    wide = torch.full((5, 256), torch.nan, device=DEVICE)
    wide[:, :72] = x
    scores = fused.retaining_scores(wide[:, :72], *weights)
    assert_close(scores, plain.retaining_scores(x, *weights), F32)


def test_it_compiles_for_every_card() -> None:
    launches = []
    for group, head_dim, dtype, activation in ((4, 128, BF16, "silu"), (7, 64, F16, "relu")):
        locret = Locret(64, 2 * group, 2, head_dim, 1024, dtype).inputs()
        launches += recorded(
            [fused.score_rows], lambda x=locret, a=activation: fused.locret_scores(*x, a)
        )
    for dtype in (BF16, F16, F32):
        ours = Ours(64, 896, 256, 2, dtype).inputs()
        launches += recorded([fused.score_rows], lambda: fused.retaining_scores(*ours))
    launches = [replace(x, constexprs={**x.constexprs, "AS_FLOAT": False}) for x in launches]
    compiled = compile_all(launches)
    assert len(compiled) == 5 * 5
    for launch, capability, made in compiled:
        assert made.cubin_bytes > 0 and made.shared_bytes <= SHARED_LIMIT[capability], launch
        assert made.spill_bytes <= SPILLS, (launch, capability, made)


def test_the_plain_version_is_the_module() -> None:
    from engine.geometry import ModelGeometry
    from heads.retaining import LocretHead, RetainingHead

    geometry = ModelGeometry(1, 4, 2, 16, 48, window=64)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ours, theirs = RetainingHead(geometry, 32), LocretHead(geometry, 32, "silu")
        torch.nn.init.normal_(ours.b1)
        torch.nn.init.normal_(ours.b2)
        x, q = torch.randn(5, 48), torch.randn(4, 5, 16)
        k, v = torch.randn(2, 2, 5, 16)
    with torch.no_grad():
        weights = [p[0] for p in (ours.w1, ours.b1, ours.w2, ours.b2)]
        torch.testing.assert_close(plain.retaining_scores(x, *weights), ours(x, 0).T)
        flat = torch.cat([q, k, v]).transpose(0, 1).flatten(1)
        scores = plain.locret_scores(q, k, v, theirs.fc1[0], theirs.fc2[0], "silu")
        torch.testing.assert_close(scores, theirs(flat, 0).T)


def test_the_same_activations_as_the_heads() -> None:
    from heads.retaining import _ACTIVATIONS

    assert plain.ACTIVATIONS == _ACTIVATIONS


def test_no_rows_and_unknown_activations() -> None:
    *rows, fc1, fc2 = Locret(0, 2, 2, 64, 160, F32).inputs()
    assert fused.locret_scores(*rows, fc1, fc2, "silu").shape == (2, 0)
    with pytest.raises(ValueError, match="tanh"):
        fused.locret_scores(*rows, fc1, fc2, "tanh")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_on_a_card(dtype: torch.dtype) -> None:
    inputs = Ours(1025, 896, 256, 2, dtype).inputs("cuda")
    assert_close(fused.retaining_scores(*inputs), plain.retaining_scores(*inputs), dtype)
    *rows, fc1, fc2 = Locret(1025, 8, 4, 128, 1024, dtype).inputs("cuda")
    scores = fused.locret_scores(*rows, fc1, fc2, "silu")
    assert_close(scores, plain.locret_scores(*rows, fc1, fc2, "silu"), dtype)
    assert torch.equal(scores, fused.locret_scores(*rows, fc1, fc2, "silu"))
