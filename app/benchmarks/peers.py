"""`bench peers`: Longread and llama.cpp on the same file, text and threads, in the same run.

The rival runs in its own Python (app.benchmarks.rival) and reads the GGUF file that our copy was
made from, at the settings that were fastest for it here. Runs take turns.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.benchmarks.bench import Bench, Request
from app.benchmarks.children import Child
from app.benchmarks.curve import Curve, fitted
from app.benchmarks.decode import NEW_TOKENS
from app.benchmarks.errors import ChildFailed, RivalMissing
from app.benchmarks.figures import clock, figure, median, ratio
from app.benchmarks.restore import save
from app.plots import Line
from app.setup.installer import clean_environment
from engine.quantisation import QuantConfig

if TYPE_CHECKING:
    from engine.cache import DocCache

NAME = "peers"
KV_BITS = "16"  # stored in k8v4 besides
LENGTHS = (4096, 16_384, 32_768)
PYTHON_ENV = "LONGREAD_LLAMA_PYTHON"
RIVAL_SCRIPT = Path(__file__).with_name("rival.py")
RIVAL_LONGEST = 32_768  # beyond it the rival's time is taken from its curve
FAR_TOKENS = 131_072
DECODED_TOKENS = NEW_TOKENS - 1
TRIAL_TOKENS = 4096
PACKED = QuantConfig(k_bits=8, v_bits=4)
TRIALS = (
    {"flash_attn": True, "n_batch": 512},
    {"flash_attn": False, "n_batch": 512},
    {"flash_attn": True, "n_batch": 2048},
)
COLUMNS = (
    ("tokens", "tokens", 8, 0),
    ("tok_s", "tok/s", 9, 1),
    ("rival_tok_s", "rival", 9, 1),
    ("read_ratio", "ratio", 7, 2),
    ("decode_tok_s", "decode", 8, 2),
    ("rival_decode_tok_s", "rival", 8, 2),
    ("decode_ratio", "ratio", 7, 2),
    ("snapshot_mb", "MB", 9, 1),
    ("rival_state_mb", "rival", 9, 1),
    ("snapshot_ratio", "ratio", 7, 2),
    ("snapshot_k8v4_ratio", "k8v4", 7, 2),
)
AXES = ("document tokens", "tokens a second while reading")


@dataclass(frozen=True)
class Taken:
    """What one side took for one length: seconds to read, to decode DECODED_TOKENS, and bytes.

    packed_nbytes  our snapshot once more with keys in 8 and values in 4 bits, if it was in 16
    """

    read_s: float
    decode_s: float
    nbytes: int
    packed_nbytes: int | None = None


def find_python(request: Request) -> Path:
    """The rival's Python: the flag, the environment variable, or the data directory's own.

    Raises RivalMissing, which says how to make one.
    """
    folder = Path(request.data_dir) / "rivals" / "llama-cpp"
    inside = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    named = request.rival_python or os.environ.get(PYTHON_ENV)
    python = Path(named).expanduser() if named else folder.joinpath(*inside)
    if not python.is_file():
        raise RivalMissing(
            f"There is no llama-cpp-python to measure against: {python} is not there.",
            _how_to_make(folder, folder.joinpath(*inside)),
        )
    return python


def _how_to_make(folder: Path, python: Path) -> str:
    return (
        f"Make it an environment of its own: `python -m venv {folder}`, then "
        f"`{python} -m pip install llama-cpp-python`; or name a Python that has it with "
        f"--rival-python or {PYTHON_ENV}."
    )


def model_file(request: Request) -> Path:
    """The GGUF file of the model, which both sides are to read; fetched if it is not here.

    Raises RivalMissing if the model has none.
    """
    from engine.fetch import fetch
    from engine.registry import find

    spec = find(request.model)
    if spec is not None and spec.filename:
        return fetch(spec, Path(request.models_dir))
    path = Path(request.model).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return path.resolve()
    raise RivalMissing(
        f"The model {request.model} is no GGUF file, and llama.cpp reads nothing else.",
        "Name a model that comes as one with --model.",
    )


def measure(bench: Bench) -> dict[str, Any]:
    """Both sides at every length; the ratios that the plan names are None where not measured."""
    python = find_python(bench.request)
    command = (str(python), str(RIVAL_SCRIPT))
    with Child("The rival", command, clean_environment(), _shown(bench)) as rival:
        version = _hello(rival, bench.request)
        path = model_file(bench.request)
        bench.warm_up()
        ours: list[dict[int, Taken]] = []
        theirs: list[dict[int, Taken]] = []
        points: list[tuple[int, float]] = []
        settings, trials = _best_settings(bench, rival, path)
        ids, same = _rival_ids(bench, rival)
        for number in range(bench.request.runs):
            bench.stage(f"run {number + 1} of {bench.request.runs}")
            taken, marks = _their_turn(bench, rival, ids)
            theirs.append(taken)
            points += marks
            ours.append(_our_turn(bench))
    about = {
        "rival": {
            "name": "llama.cpp through llama-cpp-python",
            "version": version,
            "file": path.name,
            "threads": bench.threads,
            "kv": "f16",
            **settings,
            "trials": trials,
            "same_tokens": same,
        }
    }
    return {
        **bench.about(NAME),
        "scorer": bench.scorer_name,
        **about,
        **report(bench, ours, theirs, points),
    }


def _hello(rival: Child, request: Request) -> str:
    try:
        return str(rival.ask(do="hello")["version"])
    except ChildFailed as failed:
        if failed.exit_code != RivalMissing.exit_code:
            raise
        python = find_python(request)
        raise RivalMissing(
            failed.cause, f"Install it: `{python} -m pip install llama-cpp-python`."
        ) from failed


def _shown(bench: Bench) -> Any:
    return lambda done, total: bench.progress("rival", done, total)


def _rival_lengths(bench: Bench) -> list[int]:
    return [n for n in bench.request.lengths if n <= RIVAL_LONGEST] or [RIVAL_LONGEST]


def _open(
    bench: Bench, rival: Child, path: Path, settings: dict[str, Any], n_tokens: int
) -> dict[str, Any]:
    n_ctx = n_tokens + DECODED_TOKENS + 1
    return rival.ask(do="open", path=str(path), n_ctx=n_ctx, threads=bench.threads, **settings)


def _best_settings(
    bench: Bench, rival: Child, path: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The rival's fastest settings on a short reading, opened for the whole run; and all trials."""
    lengths = _rival_lengths(bench)
    n_tokens = min(lengths[0], TRIAL_TOKENS)
    ids = bench.ids(n_tokens)
    trials: list[dict[str, Any]] = []
    seconds: list[float] = []
    for settings in TRIALS:
        opened = _open(bench, rival, path, settings, n_tokens)
        if max(ids) >= opened["n_vocab"]:
            ids = [0] * n_tokens
        rival.ask(do="read", ids=ids[:16], start=0)
        marks = rival.ask(do="read", ids=ids, start=0)["marks"]
        seconds.append(marks[-1][1])
        trials.append({**settings, "tokens": n_tokens, "seconds": figure(marks[-1][1])})
    best = seconds.index(min(seconds))
    _open(bench, rival, path, TRIALS[best], lengths[-1])
    return dict(TRIALS[best]), trials


def _rival_ids(bench: Bench, rival: Child) -> tuple[list[int], bool]:
    """The text in the rival's own tokens, and whether they are ours."""
    longest = _rival_lengths(bench)[-1]
    ids = bench.ids(longest)
    text = bench.model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    theirs = list(rival.ask(do="tokens", text=text)["ids"])
    if theirs == ids:
        return ids, True
    while len(theirs) < longest:  # fewer tokens for the same text: go on from its beginning
        theirs += theirs or [0]
    return theirs[:longest], False


def _their_turn(
    bench: Bench, rival: Child, ids: list[int]
) -> tuple[dict[int, Taken], list[tuple[int, float]]]:
    """One reading of the longest text with a stop at each length; and the curve's points."""
    taken: dict[int, Taken] = {}
    points: list[tuple[int, float]] = []
    start, seconds = 0, 0.0
    for n_tokens in _rival_lengths(bench):
        marks = rival.ask(do="read", ids=ids[start:n_tokens], start=start)["marks"]
        points += [(done, seconds + spent) for done, spent in marks]
        start, seconds = n_tokens, points[-1][1]
        nbytes = rival.ask(do="state")["bytes"]
        decode_s = rival.ask(do="decode", n=DECODED_TOKENS)["seconds"]
        taken[n_tokens] = Taken(seconds, decode_s, nbytes)
    return taken, points


def _our_turn(bench: Bench) -> dict[int, Taken]:
    """A reading of each length from the start, an answer on it, and its snapshot."""
    from engine.generate import Sampling, generate
    from engine.prefill import prefill

    model, device = bench.model, bench.model.device
    taken: dict[int, Taken] = {}
    for n_tokens in bench.request.lengths:
        ids = bench.ids(n_tokens)
        scorer = bench.new_scorer()
        bench.stage(f"Longread, {n_tokens} tokens")
        bench.progress("read", 0, n_tokens)
        started = clock(device)
        cache = prefill(
            model,
            ids,
            bench.config(scorer),
            scorer,
            on_progress=lambda done, total: bench.progress("read", done, total),
        )
        read_s = clock(device) - started
        answer = generate(
            bench.endless(),
            cache.view(),
            ids[-1:],
            Sampling(max_new_tokens=NEW_TOKENS),
            decoder=bench.decoder.decoder,
        )
        taken[n_tokens] = Taken(
            read_s, DECODED_TOKENS / answer.decode_tok_s, *_snapshots(bench, cache)
        )
    return taken


def _snapshots(bench: Bench, cache: DocCache) -> tuple[int, int | None]:
    """Bytes of the session's snapshot; and with PACKED bits, if it is in 16."""
    with bench.folder() as folder:
        nbytes = save(bench, cache, folder / "session")
        if cache.quant.on:
            return nbytes, None
        return nbytes, save(bench, cache.quantised(PACKED), folder / "packed")


def report(
    bench: Bench,
    ours: list[dict[int, Taken]],
    theirs: list[dict[int, Taken]],
    points: list[tuple[int, float]],
) -> dict[str, Any]:
    """Rows by length, medians of the runs, and the named ratios."""
    curve = fitted(points)
    rows = [_row(n, ours, theirs, curve) for n in bench.request.lengths]
    known = {row["tokens"]: row for row in rows}

    def named(n_tokens: int, key: str) -> float | None:
        value: float | None = known.get(n_tokens, {}).get(key)
        return value

    measured = [row for row in rows if row["snapshot_ratio"] is not None]
    last = measured[-1] if measured else {}
    return {
        "rows": rows,
        "read_16k_ratio": named(16_384, "read_ratio"),
        "read_32k_ratio": named(32_768, "read_ratio"),
        "read_128k_ratio": named(FAR_TOKENS, "read_ratio"),
        "decode_4k_ratio": named(4096, "decode_ratio"),
        "decode_32k_ratio": named(32_768, "decode_ratio"),
        "snapshot_ratio": last.get("snapshot_ratio"),
        "snapshot_k8v4_ratio": last.get("snapshot_k8v4_ratio"),
        "snapshot_tokens": last.get("tokens"),
        "rival_128k": _far(curve, points),
        "decoded_tokens": DECODED_TOKENS,
    }


def _row(
    n_tokens: int,
    ours: list[dict[int, Taken]],
    theirs: list[dict[int, Taken]],
    curve: Curve | None,
) -> dict[str, Any]:
    mine = [run[n_tokens] for run in ours]
    read_s = median([t.read_s for t in mine])
    tok_s, decode = n_tokens / read_s, DECODED_TOKENS / median([t.decode_s for t in mine])
    row: dict[str, Any] = {
        "tokens": n_tokens,
        "read_s": figure(read_s),
        "tok_s": figure(tok_s),
        "decode_tok_s": figure(decode),
        "snapshot_bytes": mine[-1].nbytes,
        "snapshot_k8v4_bytes": mine[-1].packed_nbytes,
        "snapshot_mb": figure(mine[-1].nbytes / 1e6),
        "rival_extrapolated": n_tokens not in theirs[0],
    }
    found = [run[n_tokens] for run in theirs if n_tokens in run]
    rival_s = rival_decode = nbytes = None
    if found:
        rival_s, nbytes = median([t.read_s for t in found]), found[-1].nbytes
        rival_decode = DECODED_TOKENS / median([t.decode_s for t in found])
    elif curve is not None:
        rival_s = curve.seconds(n_tokens)
    return {
        **row,
        "rival_read_s": figure(rival_s),
        "rival_tok_s": ratio(n_tokens, rival_s),
        "read_ratio": ratio(rival_s, read_s),
        "rival_decode_tok_s": figure(rival_decode),
        "decode_ratio": ratio(decode, rival_decode) if rival_decode else None,
        "rival_state_bytes": nbytes,
        "rival_state_mb": figure(nbytes / 1e6) if nbytes else None,
        "snapshot_ratio": ratio(nbytes, mine[-1].nbytes),
        "snapshot_k8v4_ratio": ratio(nbytes, mine[-1].packed_nbytes),
    }


def _far(curve: Curve | None, points: list[tuple[int, float]]) -> dict[str, Any] | None:
    """The rival's time for 128K tokens, and that nobody measured it."""
    if curve is None:
        return None
    longest = max(n for n, _ in points)
    return {
        "tokens": FAR_TOKENS,
        "seconds": figure(curve.seconds(FAR_TOKENS)),
        "extrapolated": True,
        "how": f"a n + b n^2 through its own times up to {longest} tokens, not measured",
        "linear_s": figure(curve.linear),
        "quadratic_s": figure(curve.quadratic),
    }


def lines(report: dict[str, Any]) -> list[Line]:
    """Reading speed of both sides."""
    found = []
    for name, key in (("Longread", "tok_s"), ("llama.cpp", "rival_tok_s")):
        points = [(row["tokens"], row[key]) for row in report["rows"] if row[key] is not None]
        if points:
            found.append(Line(name, points))
    return found


def summary(report: dict[str, Any]) -> list[str]:
    """What the table cannot say."""
    rival = report["rival"]
    said = [
        f"Rival: {rival['name']} {rival['version']} on {rival['file']}, "
        f"{rival['threads']} threads, "
        f"flash attention {'on' if rival['flash_attn'] else 'off'}, "
        f"batches of {rival['n_batch']}, "
        "f16 keys and values. Ratios are ours over its; higher is better for us.",
    ]
    if not rival["same_tokens"]:
        said.append("Its tokeniser cuts the text otherwise than ours; speeds are per own token.")
    if report["rival_128k"] is not None:
        far = report["rival_128k"]
        said.append(
            f"Rival at {far['tokens']} tokens: {far['seconds']} s, extrapolated ({far['how']})."
        )
    return said
