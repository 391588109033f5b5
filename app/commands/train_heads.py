"""`train-heads`: train retaining heads for a model, on question sets or on one's own documents."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.arguments import a_path, above_zero, count, heads_file, positive, readable, seed
from app.commands.common import add_json, data_dir, print_json, say
from app.commands.training_data import training_documents
from app.desk import words

if TYPE_CHECKING:
    from app.paths import DataPaths
    from engine.loader import LoadedModel
    from heads.retaining import HeadCard, HeadScorer, LocretHead, RetainingHead
    from heads.train import FitReport
    from heads.train_plan import TrainPlan, TrainSettings

NAME = "train-heads"
HELP = "train retaining heads for a model; a training that was cut off goes on where it stopped"
GIB = 2**30
_PROBE_TOKENS = 512  # read once to say beforehand how long the training will take
_LABELS = ("blend", "questions", "kvzip_plus", "kvzip", "cis")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "model", type=readable, metavar="MODEL", help="model name, hub id, folder or GGUF file"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        type=a_path,
        required=True,
        metavar="FILE",
        help="question sets (.jsonl), documents of any kind, or folders of them",
    )
    parser.add_argument(
        "--out",
        type=heads_file,
        metavar="FILE",
        help="a .safetensors file, new or old (default: beside the models)",
    )
    parser.add_argument("--start", type=a_path, metavar="FILE", help="go on from these heads")
    parser.add_argument("--kind", choices=("retaining", "locret"), default="retaining")
    parser.add_argument("--label", choices=_LABELS, help="default: blend; cis for locret")
    parser.add_argument("--loss", choices=("mse", "bce", "rank", "locret"))
    parser.add_argument("--width", type=positive, help="default: 256; 1024 for locret")
    parser.add_argument("--epochs", type=above_zero, default=None)
    parser.add_argument(
        "--rounds",
        type=count,
        default=2,
        help="1 leaves out on-policy reading, 0 every fit to labels (--start and --answer-steps)",
    )
    parser.add_argument(
        "--answer-steps",
        type=count,
        default=0,
        metavar="N",
        help="then fit the heads to what answers lose, N steps of six questions; more memory",
    )
    parser.add_argument("--kept", type=_share, default=0.25, help="on-policy share kept")
    parser.add_argument(
        "--ask-itself",
        action="store_true",
        help="the model asks itself about documents without questions, or cut short",
    )
    parser.add_argument("--documents", type=positive, metavar="N", help="of each question set")
    parser.add_argument(
        "--max-tokens", type=positive, default=4096, help="longer documents are cut there"
    )
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--licence", default="", help="licence of the data, for the card")
    parser.add_argument("--plan", action="store_true", help="say what it takes, and stop")
    add_json(parser)


def _share(text: str) -> float:
    value = above_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is more than everything")
    return value


def run(args: argparse.Namespace) -> int:
    """Plan, train, and say where the heads lie and what they cost."""
    from app.commands.eval import load
    from app.paths import data_paths
    from app.prompts import Layout
    from engine.files import need_disk
    from heads.start import load_start
    from heads.train_checks import check_training
    from heads.train_plan import plan
    from heads.training import is_first_process, train

    paths = data_paths(data_dir(args)).make()
    documents = training_documents(args.data, args.documents)
    settings = _settings(args)
    model = load(args.model, "auto", paths)
    layout = Layout(model.tokenizer)
    given = None if args.start is None else load_start(args.start, model)
    start = None if given is None else given.head
    check_training(layout, documents, settings, start)
    work = paths.models / "training"
    found = plan(model, layout, documents, settings, work)
    rate = _tokens_per_s(model)
    if is_first_process():
        _tell_plan(found, rate)
    if args.plan:
        if args.json and is_first_process():
            print_json({"plan": _plan_values(found, rate)})
        return 0
    need_disk(paths.models, found.disk_bytes, "The recordings of this training")
    out = args.out or _default_out(model, args.kind, paths)
    card = _card(args, model, settings, found, given)
    began = time.perf_counter()
    head, reports = train(model, layout, documents, settings, work, out, card, start=start, say=say)
    seconds = time.perf_counter() - began
    if not is_first_process():
        return 0
    report = _report(head, reports, out, found, rate, seconds)
    report["held_out"] = card.held_out
    report["card"] = str(_write_card(card, out))
    answers = reports.pop() if settings.answers.steps else None
    if reports:
        report["loss_plot"] = str(_plot(reports, out))
    if answers is not None and answers.curves[0]:  # steps of an earlier version left none
        report["answers_plot"] = str(_plot_answers(answers, out))
    say(f"Heads: {out} ({out.stat().st_size / 2**20:.1f} MiB), {seconds / 60:.1f} minutes.")
    if args.json:
        print_json(report)
    else:
        print(out, flush=True)
    return 0


def _settings(args: argparse.Namespace) -> TrainSettings:
    from heads.answer_fit import AnswerFitSettings
    from heads.recordings import RecordSettings
    from heads.train import FitSettings
    from heads.train_plan import TrainSettings

    locret = args.kind == "locret"
    usual = FitSettings()
    fitting = FitSettings(
        kind=args.kind,
        label=args.label or ("cis" if locret else usual.label),
        loss=args.loss or ("locret" if locret else usual.loss),
        width=args.width or (1024 if locret else usual.width),
        epochs=args.epochs or usual.epochs,
        lr=5e-4 if locret else usual.lr,
        seed=args.seed,
    )
    recording = RecordSettings(max_tokens=args.max_tokens, ask_itself=args.ask_itself)
    answers = AnswerFitSettings(steps=args.answer_steps, seed=args.seed)
    return TrainSettings(recording, fitting, args.rounds, args.kept, answers)


def _card(
    args: argparse.Namespace,
    model: LoadedModel,
    settings: TrainSettings,
    found: TrainPlan,
    given: HeadScorer | None,
) -> HeadCard:
    """What can be said of the heads before they are trained."""
    from engine.files import sha256_of
    from heads.retaining import HeadCard

    label, start = settings.fitting.label, ""
    if given is not None:
        start = f"{args.start.name}, SHA-256 {sha256_of(args.start)}"
        if not settings.rounds:  # no label is learnt but theirs
            label = given.card.label or "a label not stated"
    documents = f"{words.count(found.n_documents, 'document')}, {found.n_tokens} tokens: "
    return HeadCard(
        model.name,
        label,
        documents + ", ".join(path.name for path in args.data),
        commit=_commit(),
        licence=args.licence,
        start=start,
    )


def _tokens_per_s(model: LoadedModel) -> float:
    """Prefill speed here and now, measured on a short text of the model's own vocabulary."""
    from engine.eviction import EvictionConfig
    from engine.prefill import PrefillConfig, prefill
    from engine.scorers.recency import RecencyScorer

    ids = [1000 + i % 997 for i in range(_PROBE_TOKENS)]
    ids = [i % model.geometry.vocab_size for i in ids]
    config = PrefillConfig(_PROBE_TOKENS, EvictionConfig(budget_tokens=None))
    began = time.perf_counter()
    prefill(model, ids, config, RecencyScorer())
    return _PROBE_TOKENS / (time.perf_counter() - began)


def _plan_values(found: TrainPlan, rate: float) -> dict[str, Any]:
    return {
        "documents": found.n_documents,
        "tokens": found.n_tokens,
        "forward_tokens": found.forward_tokens,
        "fit_tokens": found.fit_tokens,
        "tokens_per_s": rate,
        "seconds": found.seconds(rate),
        "disk_bytes": found.disk_bytes,
        "memory_bytes": found.memory_bytes,
    }


def _tell_plan(found: TrainPlan, rate: float) -> None:
    say(
        f"{words.count(found.n_documents, 'document')}, {found.n_tokens} tokens. "
        f"Reading and fitting take about {found.seconds(rate) / 60:.0f} minutes at {rate:.0f} "
        "tokens a second; "
        f"{found.disk_bytes / GIB:.1f} GiB on disk, {found.memory_bytes / GIB:.1f} GiB of memory "
        "beside the model."
    )


def _default_out(model: LoadedModel, kind: str, paths: DataPaths) -> Path:
    from heads.catalog import head_name

    return paths.models / "heads" / head_name(kind, model.name)


def _report(
    head: RetainingHead | LocretHead,
    reports: list[FitReport],
    out: Path,
    found: TrainPlan,
    rate: float,
    seconds: float,
) -> dict[str, Any]:
    return {
        "heads": str(out),
        "bytes": out.stat().st_size,
        "kind": head.kind,
        "plan": _plan_values(found, rate),
        "seconds": seconds,
        "rounds": [
            {"held_loss": _mean(r.held_loss), "held_rank": _mean(r.held_rank)}
            for r in reports
            if r.held_loss
        ],
    }


def _mean(values: list[float]) -> float | None:
    """None where nothing was held out, which JSON can say and NaN it cannot."""
    mean = sum(values) / len(values)
    return mean if math.isfinite(mean) else None


def _write_card(card: HeadCard, out: Path) -> Path:
    """The card that the heads carry inside, as a page beside them."""
    facts = {
        "Base model": card.base_model,
        "Goes on from": card.start,
        "Label": card.label,
        "Data": card.data,
        "Licence of the data": card.licence or "not stated",
        "Cost": card.cost,
        "Held out": "; ".join(map(_held_line, card.held_out)) or "nothing was looked at",
        "Commit": card.commit or "not from a checkout",
        "Size": f"{out.stat().st_size / 2**20:.1f} MiB",
        "Settings": f"`{json.dumps(card.settings, sort_keys=True)}`",
    }
    lines = [f"# Retaining heads: {out.name}", ""]
    lines += [f"- **{name}**: {fact}" for name, fact in facts.items() if fact]
    path = out.with_suffix(".md")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _held_line(row: dict[str, float]) -> str:
    return (
        f"{row['kept']:.4g} kept: {row['kl_before']:.3f} to {row['kl']:.3f} nats from the full "
        f"cache, {row['lost_before']:+.3f} to {row['lost']:+.3f} lost of the true answers"
    )


def _plot(reports: list[FitReport], out: Path) -> Path:
    """The training curves beside the heads, one line a round, mean over layers."""
    from app.plots import Line, line_chart

    lines = []
    for number, report in enumerate(reports, 1):
        points = zip(*report.curves, strict=True)
        means = [(p[0][0], sum(v for _, v in p) / len(p)) for p in points]
        lines.append(Line(f"round {number}", means))
    path = out.with_suffix(".loss.svg")
    path.write_text(line_chart("Training loss", "step", "loss", lines), encoding="utf-8")
    return path


def _plot_answers(report: FitReport, out: Path) -> Path:
    """How far steps through answers were from the full cache, beside the heads."""
    from app.plots import Line, line_chart

    path = out.with_suffix(".answers.svg")
    lines = [Line("through answers", report.curves[0])]
    chart = line_chart("Answers while heads learn", "step", "nats from the full cache", lines)
    path.write_text(chart, encoding="utf-8")
    return path


def _commit() -> str:
    """The commit of this program, for the card; empty outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
