"""One pytest run that both runs Triton kernels and compiles them, on a machine without a card.

Triton decides once, when it is imported, whether @triton.jit gives a kernel to compile or one that
numpy interprets; one process cannot have both. So the work is split:

* The process of pytest interprets, unless there is a CUDA card. A test module calls
  `interpret_without_gpu()` before it imports a kernel; `DEVICE` is where its tensors belong.
  On a machine with a card the very same tests run on the card.
* `compile_all` starts a subprocess for each core without TRITON_INTERPRET (this file, run with
  -m), which compiles the launches it is given for all capabilities and answers in JSON. It has a
  fresh TRITON_CACHE_DIR, so that it truly compiles.

What to compile is recorded, not written down twice: `recorded(kernels, call)` lets `call` prepare
its launches with real tensors, and keeps signature, constants, warps and stages of each instead of
running it. A test that compiles therefore compiles what the program launches.

Shared memory is Triton's own figure; registers and spills are what the ptxas it ships prints.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES = (80, 86, 89, 90, 120)
KIB = 1024
# The most dynamic shared memory one block may have: CUDA C++ programming guide, table of technical
# specifications per compute capability.
SHARED_LIMIT = {80: 163 * KIB, 86: 99 * KIB, 89: 99 * KIB, 90: 227 * KIB, 120: 99 * KIB}


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one kernel; all sizes in bytes, registers and spills per thread."""

    cubin_bytes: int
    shared_bytes: int
    spill_bytes: int
    registers: int


@dataclass(frozen=True)
class Launch:
    """One way in which a kernel is launched, as far as the compiler cares.

    kernel      "module:name"
    signature   argument -> "*bf16", "i32", "fp32", ... or "constexpr"
    constexprs  argument -> its value, for those that are "constexpr"
    """

    kernel: str
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3


def interpret_without_gpu() -> str:
    """Have kernels interpreted in this process unless it has a card; returns the device to use.

    To be called before anything imports Triton; if that has happened already it raises. The tests
    of a module that calls this are skipped where there is no Triton.
    """
    import pytest
    import torch

    if torch.cuda.is_available():
        pytest.importorskip("triton")
        return "cuda"
    os.environ["TRITON_INTERPRET"] = "1"
    pytest.importorskip("triton")
    import triton.language
    from triton.runtime import JITFunction

    if isinstance(triton.language.zeros, JITFunction):
        raise RuntimeError(
            "Triton was imported before TRITON_INTERPRET was set, so that its kernels cannot be "
            "interpreted here; import it later, or set the variable for the whole run"
        )
    return "cpu"


def recorded(kernels: Iterable[Any], call: Callable[[], object]) -> list[Launch]:
    """The launches of `kernels` that `call` would make; none is made, so its results are noise.

    A kernel's caller may ask `triton.knobs.runtime.interpret` what it is running in (bf16 cannot be
    multiplied in the interpreter); while recording the answer is that of the compiler.
    """
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    with contextlib.ExitStack() as undo:
        undo.enter_context(mock.patch.dict(os.environ))
        os.environ.pop("TRITON_INTERPRET", None)
        for kernel in kernels:

            def run(*args: Any, kernel: Any = kernel, **kwargs: Any) -> None:
                calls.append((kernel, args, kwargs))

            kernel.run = run
            undo.callback(delattr, kernel, "run")
        call()
    return [_launch(*made) for made in calls]


def _launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    values = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
    signature, constexprs = {}, {}
    for name in kernel.arg_names:
        value = values[name]
        annotation = kernel.fn.__annotations__.get(name, "")
        signature[name] = "constexpr" if "constexpr" in str(annotation) else _type_of(value)
        if signature[name] == "constexpr":
            constexprs[name] = value
    options = {key: kwargs[key] for key in ("num_warps", "num_stages") if key in kwargs}
    name = f"{kernel.fn.__module__}:{kernel.fn.__name__}"
    return Launch(name, signature, constexprs, **options)


def _type_of(value: Any) -> str:
    from triton.runtime.jit import mangle_type

    return "constexpr" if value is None else str(mangle_type(value))


def compile_all(
    launches: Iterable[Launch], capabilities: Iterable[int] = CAPABILITIES
) -> list[tuple[Launch, int, Compiled]]:
    """Compile every launch for every capability, in fresh processes that share the work.

    Raises RuntimeError with the compiler's words if one does not compile.
    """
    launches, capabilities = list(launches), list(capabilities)
    n = min(os.cpu_count() or 1, len(launches))
    shares = [launches[i::n] for i in range(n)]
    with ThreadPoolExecutor(n) as pool:
        answers = list(pool.map(lambda share: _compile_share(share, capabilities), shares))
    found: list[list[Compiled]] = [[] for _ in launches]
    for i, share in enumerate(answers):
        found[i::n] = share
    return [
        (launch, capability, one)
        for launch, made in zip(launches, found, strict=True)
        for capability, one in zip(capabilities, made, strict=True)
    ]


def _compile_share(launches: list[Launch], capabilities: list[int]) -> list[list[Compiled]]:
    """For each launch what was made of it for each capability, by one process."""
    request = {"launches": [asdict(x) for x in launches], "capabilities": capabilities}
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory(prefix="longread-triton-") as cache:
        done = subprocess.run(
            [sys.executable, "-m", "tests.kernels.aot"],
            input=json.dumps(request, default=_as_json),
            env={**environment, "TRITON_CACHE_DIR": cache},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"compilation failed:\n{(done.stdout + done.stderr)[-4000:]}")
    answers = iter(json.loads(done.stdout.splitlines()[-1]))
    return [[Compiled(**next(answers)) for _ in capabilities] for _ in launches]


def _as_json(value: Any) -> dict[str, str]:
    """What json itself cannot write of a constant: Triton's number types."""
    import triton.language as tl

    if isinstance(value, tl.dtype):
        return {"dtype": value.name}
    raise TypeError(f"a constant of type {type(value).__name__} cannot be sent to the compiler")


def _from_json(value: Any) -> Any:
    import triton.language as tl

    return tl.dtype(value["dtype"]) if isinstance(value, dict) else value


def compile_for(
    kernel: Any,
    signature: dict[str, str],
    constexprs: dict[str, object],
    capability: int,
    num_warps: int = 4,
    num_stages: int = 3,
) -> Compiled:
    """Compile one kernel for one compute capability (86 for 8.6), without a card.

    Works only in a process that does not interpret; pointers are taken to be aligned to 16 bytes,
    as those that torch allocates are.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constexprs, aligned)
    triton.knobs.nvidia.dump_ptxas_log = True
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
    return Compiled(
        cubin_bytes=len(compiled.asm["cubin"]),
        shared_bytes=compiled.metadata.shared,
        spill_bytes=_total(r"(\d+) bytes spill (?:stores|loads)", log.getvalue()),
        registers=_total(r"Used (\d+) registers", log.getvalue()),
    )


def _total(pattern: str, ptxas_log: str) -> int:
    found = re.findall(pattern, ptxas_log)
    if not found:
        raise RuntimeError(f"ptxas did not say {pattern!r}: {ptxas_log!r}")
    return sum(map(int, found))


def main() -> None:
    """Read launches and capabilities as JSON from standard input, write what came of them."""
    request = json.load(sys.stdin)
    answers = []
    for fields in request["launches"]:
        launch = Launch(**fields)
        module, name = launch.kernel.split(":")
        kernel = getattr(import_module(module), name)
        constexprs = {k: _from_json(v) for k, v in launch.constexprs.items()}
        for capability in request["capabilities"]:
            options = (capability, launch.num_warps, launch.num_stages)
            answers.append(asdict(compile_for(kernel, launch.signature, constexprs, *options)))
    sys.stdout.write(json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
