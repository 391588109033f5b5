"""Which number format this machine computes fastest in: measured once, kept, never assumed.

fp16 is not a candidate to compute in: on CPUs it is emulated and many times slower than either.
Products in fp32 with weights packed in fp16 (kernels.linear) can be faster than fp32's own, and are
measured beside.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from engine.files import read_json, remember
from kernels.linear import Format, linear, pack, seconds_per_call

CACHE_NAME = "number-format.json"
CANDIDATES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# One feed-forward matrix of the default model, as many rows at a time as a chunk has there
# (engine.lean): [256, hidden] x [hidden, intermediate].
PREFILL_SHAPE = (256, 896, 4864)
DECODE_SHAPE = (1, 896, 4864)
SECONDS_EACH = 0.25
# bf16 halves the memory, so it wins unless fp32 is clearly faster.
CLEARLY = 1.1
CLEARLY_SLOWER = 1.3
# Of what is remembered; its second form, since int8 was faster than measurements before said.
_ANSWERS = "answers 2"
# One measurement at a time: two at once would slow each other, and take each other's threads.
# The weights of answers are packed beside the reading, so two threads do ask.
_MEASURING = threading.Lock()


@dataclass(frozen=True)
class Choice:
    """The compute format picked for this machine.

    name    "fp32" or "bf16"
    gflops  "prefill_fp32", "prefill_bf16", "decode_fp32", "decode_bf16": 1e9 operations a second;
            "prefill_fp16": in fp32 from weights packed in fp16, 0 where torch has no such product
    reason  one sentence with the figures, for `doctor`
    packed  whether long documents are read from weights packed in fp16
    """

    name: str
    gflops: dict[str, float]
    reason: str
    packed: bool = False


@dataclass(frozen=True)
class AnswerChoice:
    """name: "same", "fp16" or "int8"; milliseconds of one row's product by format; reason."""

    name: str
    milliseconds: dict[str, float]
    reason: str


def measure_formats(seconds_each: float = SECONDS_EACH) -> dict[str, float]:
    """GFLOP/s of a matrix product in each format, at the threads torch uses now; takes a second.

    Keys as in `Choice.gflops`: prefill is 256 rows, decode a single one.
    """
    shapes = {"prefill": PREFILL_SHAPE, "decode": DECODE_SHAPE}
    found = {
        f"{phase}_{name}": round(_gflops(shape, dtype, seconds_each), 1)
        for phase, shape in shapes.items()
        for name, dtype in CANDIDATES.items()
    }
    return found | {"prefill_fp16": round(_packed_gflops(PREFILL_SHAPE, seconds_each), 1)}


def pick_format(cache_file: Path | None) -> Choice:
    """The faster compute format for reading documents on this CPU.

    cache_file  JSON that remembers the measurement of each machine, torch and thread count;
                None measures anew
    """
    with _MEASURING:
        key = machine_key()
        entry = _known(cache_file).get(key)
        if isinstance(entry, dict) and set(entry) == {"name", "gflops", "reason", "packed"}:
            return Choice(**entry)
        choice = choose(measure_formats())
        _remember(cache_file, key, asdict(choice))
    return choice


def choose(gflops: dict[str, float]) -> Choice:
    """Decide from measured figures: reading dominates, so prefill decides."""
    fp32, bf16, fp16 = (gflops[f"prefill_{name}"] for name in ("fp32", "bf16", "fp16"))
    figures = f"{bf16:.0f} GFLOP/s in bf16, {fp32:.0f} in fp32"
    packed = fp16 > CLEARLY * fp32
    if packed:
        figures += f", {fp16:.0f} from weights packed in fp16"
    if max(fp32, fp16) > CLEARLY * bf16:
        return Choice("fp32", gflops, f"fp32 reads faster here ({figures}).", packed)
    if bf16 > CLEARLY * fp32:
        return Choice("bf16", gflops, f"bf16 reads faster here ({figures}).")
    reason = f"Both are equally fast ({figures}); bf16 takes half the memory."
    return Choice("bf16", gflops, reason)


def pick_answer_format(cache_file: Path | None) -> AnswerChoice:
    """What weights answers are computed with fastest on this CPU (kernels.linear).

    fp16 rounds the loaded weights least, so it wins unless int8 is clearly faster, as where
    products in whole numbers keep up with the memory. cache_file as in `pick_format`: a choice that
    changed from day to day would change answers.
    """
    with _MEASURING:
        key = f"{_ANSWERS} | {machine_key()}"
        entry = _known(cache_file).get(key)
        if isinstance(entry, dict) and set(entry) == {"name", "milliseconds", "reason"}:
            return AnswerChoice(**entry)
        choice = choose_answer_format(_milliseconds_of_formats())
        _remember(cache_file, key, asdict(choice))
    return choice


def _milliseconds_of_formats() -> dict[str, float]:
    """Keys as in `AnswerChoice.milliseconds`.

    On one thread: with more, a neighbour's load on one core decides which format waits longest.
    """
    formats: tuple[Format, ...] = ("plain", "fp16", "int8")
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {f: round(1e3 * seconds_per_call(f), 3) for f in formats}
    finally:
        torch.set_num_threads(n_threads)


def _known(cache_file: Path | None) -> dict[str, object]:
    return (read_json(cache_file) or {}) if cache_file else {}


def _remember(cache_file: Path | None, key: str, choice: dict[str, object]) -> None:
    """Add one measurement to those on disk now, which may have grown since they were read."""
    if cache_file:
        remember(cache_file, {**_known(cache_file), key: choice})


def choose_answer_format(milliseconds: dict[str, float]) -> AnswerChoice:
    """Decide from what one product of a single row takes in each format."""
    plain, fp16, int8 = (milliseconds[name] for name in ("plain", "fp16", "int8"))
    figures = (
        f"{plain:.2f} ms a matrix as loaded, {fp16:.2f} in fp16, {int8:.2f} in int8, one thread"
    )
    name = "int8" if fp16 > CLEARLY_SLOWER * int8 else "fp16"
    if min(fp16, int8) > plain:
        reason = f"The weights as loaded answer fastest ({figures})."
        return AnswerChoice("same", milliseconds, reason)
    return AnswerChoice(name, milliseconds, f"{name} weights answer fast here ({figures}).")


def machine_key() -> str:
    """What a measurement is valid for: processor, torch version and thread count."""
    return f"{cpu_name()} | torch {torch.__version__} | {torch.get_num_threads()} threads"


def cpu_name() -> str:
    """The processor's model and instruction set, as well as the system tells."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def _packed_gflops(shape: tuple[int, int, int], seconds: float) -> float:
    """Of a product in fp32 with weights packed in fp16; 0 where torch has none."""
    rows, inner, columns = shape
    weight = pack(torch.ones(columns, inner), "fp16")
    if weight.format != "fp16":
        return 0.0
    left = torch.ones(rows, inner)
    return _fastest_gflops(shape, lambda: linear(left, weight), seconds)


def _gflops(shape: tuple[int, int, int], dtype: torch.dtype, seconds: float) -> float:
    rows, inner, columns = shape
    left = torch.ones(rows, inner, dtype=dtype)
    weight = torch.ones(columns, inner, dtype=dtype)
    return _fastest_gflops(shape, lambda: torch.nn.functional.linear(left, weight), seconds)


def _fastest_gflops(
    shape: tuple[int, int, int], product: Callable[[], object], seconds: float
) -> float:
    rows, inner, columns = shape
    product()  # the first call sets the library up
    best = float("inf")
    deadline = time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        product()
        ended = time.perf_counter()
        best = min(best, ended - started)
        if ended >= deadline:
            return 2 * rows * inner * columns / best / 1e9
