"""`models`: what is known, what is here, what fits; `get NAME` fetches, `show NAME` adds up."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from app.commands.arguments import above_zero, positive, readable
from app.commands.common import add_json, data_dir, print_json, say
from app.settings import DEFAULT_KV_BITS

if TYPE_CHECKING:
    from app.paths import DataPaths
    from engine.quantisation import QuantConfig
    from engine.registry import ModelSpec

NAME = "models"
HELP = (
    "list the models that can run here and what fits; `get NAME` fetches one, `show NAME` adds up"
)
BUDGETS = (1024, 4096, 16_384, 65_536)
CHUNK_TOKENS = 1024
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("action", nargs="?", choices=("list", "get", "show"), default="list")
    parser.add_argument(
        "name", nargs="?", type=readable, metavar="NAME", help="model to get, or to show"
    )
    group = parser.add_argument_group("what `show` adds up")
    group.add_argument(
        "--weights",
        choices=("fp32", "bf16", "int8", "nf4"),
        help="default: what this machine takes; nf4 on the card that --memory stands for",
    )
    group.add_argument("--budget", type=positive, metavar="TOKENS", help="default: the model's own")
    group.add_argument("--chunk", type=positive, default=CHUNK_TOKENS, metavar="TOKENS")
    group.add_argument(
        "--kv-bits",
        default=DEFAULT_KV_BITS,
        metavar="BITS",
        help=f"16, 8, k8v4, k4v4 (default: {DEFAULT_KV_BITS})",
    )
    group.add_argument(
        "--scorer",
        choices=("retaining", "locret", "none"),
        help="whose heads are loaded: ours, Locret's, or none (default: what reads by default)",
    )
    group.add_argument(
        "--memory", type=above_zero, metavar="GIB", help="of the card (default: what is free here)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """List the known models, or fetch one."""
    from app.messages import EXIT_ARGUMENTS
    from app.paths import data_paths

    paths = data_paths(data_dir(args)).make()
    if args.action == "get":
        if not args.name:
            say("longread: models get needs the NAME of a model; list them with `models`.")
            return EXIT_ARGUMENTS
        return _get(args, paths)
    if args.action == "show":
        if not args.name:
            say("longread: models show needs the NAME of a model; list them with `models`.")
            return EXIT_ARGUMENTS
        return _show(args, paths)
    if args.name:
        say(f"longread: did you mean `models get {args.name}`?")
        return EXIT_ARGUMENTS
    rows = model_rows(paths)
    if args.json:
        print_json({"models_dir": str(paths.models), "models": rows})
        return 0
    for row in rows:
        _print_row(row)
    print("\nAny other hub id, folder with safetensors or GGUF file works too: --model NAME.")
    return 0


def model_rows(paths: DataPaths) -> list[dict[str, Any]]:
    """Every known model: what it is, whether it is here, and the budgets that fit in memory."""
    from app.memory import available_bytes
    from engine.device import pick_device
    from engine.registry import known_models

    device = pick_device("auto")
    free = available_bytes(device)
    return [_row(spec, paths, device, free) for spec in known_models()]


def _row(spec: ModelSpec, paths: DataPaths, device: str, free: int) -> dict[str, Any]:
    from engine.memory import fits, terms, total
    from engine.quantisation import parse_kv_bits
    from engine.registry import default_model
    from engine.sources import state
    from engine.weights import weights_bytes

    quant = parse_kv_bits(DEFAULT_KV_BITS, spec.geometry)
    value_bytes = quant.bytes_per_value(spec.geometry.head_dim)
    fitting: dict[str, dict[str, Any]] = {}
    for weights in ("bf16", "nf4"):
        held = weights_bytes(spec.geometry, weights, tied=spec.tied)
        needs = {
            b: terms(
                spec.geometry,
                held,
                b,
                CHUNK_TOKENS,
                kv_bytes_per_value=value_bytes,
                in_tiles=device == "cpu",
            )
            for b in BUDGETS
        }
        fitting[weights] = {
            "weights_bytes": held,
            "needed_bytes": {str(b): total(parts) for b, parts in needs.items()},
            "fitting_budgets": [b for b, parts in needs.items() if fits(parts, free)],
        }
    return {
        "name": spec.name,
        "title": spec.title,
        "license": spec.license,
        "parameters": spec.parameters,
        "window_tokens": spec.window,
        "default_budget": spec.default_budget,
        "is_default": spec.name == default_model(),
        "state": state(spec, paths.models),
        "source": "package index" if spec.wheels else f"hub: {spec.hub}",
        "download_bytes": spec.download_bytes,
        "device": device,
        "available_bytes": free,
        "fits": fitting,
    }


def _print_row(row: dict[str, Any]) -> None:
    marks = {"ready": "ready", "fetched": "fetched", "absent": "not here"}
    default = ", default" if row["is_default"] else ""
    print(f"{row['name']}  [{marks[row['state']]}{default}]")
    print(
        f"    {row['title']}, {row['parameters'] / 1e9:.2f} B parameters, window "
        f"{row['window_tokens']} tokens, {row['license']}; "
        f"{row['download_bytes'] / GIB:.1f} GiB from {row['source']}"
    )
    for weights, fit in row["fits"].items():
        budgets = fit["fitting_budgets"]
        needed = fit["needed_bytes"][str(max(budgets) if budgets else BUDGETS[0])]
        if budgets:
            text = f"fits up to a budget of {max(budgets)} ({needed / GIB:.1f} GiB)"
        else:
            text = f"does not fit: needs {needed / GIB:.1f} GiB"
        print(f"    {weights}: {text}, {row['available_bytes'] / GIB:.1f} GiB free")


def memory_sum(
    spec: ModelSpec,
    weights: str,
    budget_tokens: int,
    chunk_tokens: int,
    quant: QuantConfig,
    scorer: str,
    *,
    in_tiles: bool,
) -> dict[str, int]:
    """Bytes by purpose while a document is read and asked (engine.memory.terms)."""
    from engine.memory import readable_nbytes, terms
    from engine.weights import weights_bytes
    from heads.retaining import loaded_nbytes

    geometry = spec.geometry
    compute_bytes = 4 if weights == "fp32" else 2
    parts = terms(
        geometry,
        weights_bytes(geometry, weights, tied=spec.tied),
        budget_tokens,
        chunk_tokens,
        kv_bytes_per_value=quant.bytes_per_value(geometry.head_dim),
        compute_bytes=compute_bytes,
        heads_bytes=loaded_nbytes(scorer, geometry),
        in_tiles=in_tiles,
    )
    return {**parts, "readable": readable_nbytes(geometry, budget_tokens, compute_bytes)}


def _show(args: argparse.Namespace, paths: DataPaths) -> int:
    from app.memory import available_bytes
    from engine.device import pick_device
    from engine.errors import UnknownModel
    from engine.memory import fits, total
    from engine.quantisation import parse_kv_bits
    from engine.registry import find
    from heads.catalog import default_scorer

    spec = find(args.name)
    if spec is None:
        raise UnknownModel(f"No model '{args.name}' is listed.", "List them with `models`.")
    budget = args.budget or spec.default_budget
    quant = parse_kv_bits(args.kv_bits, spec.geometry)
    scorer = args.scorer or default_scorer(spec.name, paths.models / "heads")
    given = args.memory and int(args.memory * GIB)
    device = pick_device("auto")
    room = given or available_bytes(device)
    # Memory that is named is a card's as a rule.
    on_this_cpu = device == "cpu" and not given
    weights = args.weights or ("nf4" if given else _weights_here(spec, device, paths))
    parts = memory_sum(spec, weights, budget, args.chunk, quant, scorer, in_tiles=on_this_cpu)
    if on_this_cpu and weights in ("fp32", "bf16"):
        parts["answers"] = _answers_nbytes(spec, paths)
    report = {
        "name": spec.name,
        "weights": weights,
        "budget_tokens": budget,
        "chunk_tokens": args.chunk,
        "scorer": scorer,
        "k_bits": quant.k_bits,
        "v_bits": quant.v_bits,
        "terms_bytes": parts,
        "total_bytes": total(parts),
        "memory_bytes": room,
        "fits": fits(parts, room),
    }
    if args.json:
        print_json(report)
    else:
        _print_sum(report)
    return 0


def _weights_here(spec: ModelSpec, device: str, paths: DataPaths) -> str:
    """What the model's weights would be in on this machine."""
    from engine.numeric import CACHE_NAME
    from engine.weights import choose_weights

    cache_file = paths.models / CACHE_NAME
    return choose_weights(
        "auto", device, spec.geometry, tied=spec.tied, cache_file=cache_file
    ).weights


def _answers_nbytes(spec: ModelSpec, paths: DataPaths) -> int:
    """Of the copies that answers are computed from on this CPU, where there is room for them."""
    from engine.numeric import CACHE_NAME, pick_answer_format
    from engine.packing import has_room, packed_nbytes

    format = pick_answer_format(paths.models / CACHE_NAME).name
    return packed_nbytes(spec.geometry, format) if has_room(spec.geometry, format) else 0


def _print_sum(report: dict[str, Any]) -> None:
    print(
        f"{report['name']} in {report['weights']}, {report['budget_tokens']} entries a head in "
        f"{report['k_bits']}/{report['v_bits']} bits, chunks of {report['chunk_tokens']}"
    )
    for name, nbytes in [*report["terms_bytes"].items(), ("sum", report["total_bytes"])]:
        print(f"    {name:<12}{nbytes / GIB:>8.2f} GiB")
    verdict = "fits" if report["fits"] else "does not fit"
    print(f"    {verdict} {report['memory_bytes'] / GIB:.1f} GiB")


def _get(args: argparse.Namespace, paths: DataPaths) -> int:
    from app.progress import ProgressLine
    from engine.sources import locate

    progress = ProgressLine()
    located = locate(
        args.name,
        paths.models,
        on_progress=lambda done, total: progress("fetch", done, total),
        on_message=progress.say,
    )
    progress.end()
    if args.json:
        print_json({"name": located.name, "folder": str(located.folder)})
    else:
        print(f"{located.name} is ready: {located.folder}")
    return 0
