"""Is a fact found wherever it stands? One reading a length, a fact at each of ten depths.

    python tests/bench/needle_grid.py --book FILE --models DIR --lengths 16000,128000 --budget 4096

A book (repeated if it is too short) is cut to each length, ten facts are put between its sentences
at even depths, it is read once with evictions, the budget shared out as suits the scorer, and ten
questions are asked of that one cache.
Prints a line a reading with the facts found, then one JSON line; --out writes the grid as SVG.
The same for each scorer named: all see the same text and keep the same number of entries, or with
--kv-bits at most as many bytes as --budget entries in 16 bits have, a row for each. --facts draws
other numbers for the places, and another order of them: ten facts are few.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from app.prompts import Layout
from engine.batch import generate_together, nll_together
from engine.byte_budget import entry_nbytes, fitting_tokens
from engine.eviction import EvictionConfig
from engine.loader import LoadedModel, load_model
from engine.prefill import PrefillConfig, prefill
from engine.quantisation import QuantConfig, parse_kv_bits
from heads.catalog import make_scorer
from heads.questions.filler import facts_at_depths

PLACES = (
    ("Aldermoor", "4821"),
    ("Brinkvale", "7305"),
    ("Carrowfield", "1964"),
    ("Dunmere", "8517"),
    ("Eskwood", "2390"),
    ("Farrowby", "6148"),
    ("Glenhollow", "9072"),
    ("Harthwick", "3656"),
    ("Inverlee", "5289"),
    ("Jarrowgate", "7743"),
)
FACT = "The secret number of {place} is {number}."
QUESTION = "What is the secret number of {place}?"
DEPTHS = tuple((i + 0.5) / len(PLACES) for i in range(len(PLACES)))


Facts = tuple[tuple[str, str], ...]


def drawn(number: int) -> Facts:
    """Places and their numbers by ascending depth: draw 0 is PLACES, each other one differs."""
    if number == 0:
        return PLACES
    chance = random.Random(number)
    places = chance.sample([place for place, _ in PLACES], len(PLACES))
    numbers = chance.sample(range(1000, 10_000), len(PLACES))
    return tuple((place, str(n)) for place, n in zip(places, numbers, strict=True))


def document(layout: Layout, book: str, n_tokens: int, placed: Facts) -> str:
    """The book's text, as often as needed, cut to n_tokens, with the facts inside."""
    ids, starts = layout.document_ids(book)
    times = -(-n_tokens // len(ids))
    text = book * (times - 1) + book[: starts[(n_tokens - 1) % len(ids)]]
    facts = [
        (depth, FACT.format(place=place, number=number))
        for depth, (place, number) in zip(DEPTHS, placed, strict=True)
    ]
    return facts_at_depths(text, facts)


@dataclass(frozen=True)
class Reading:
    """What one reading found: facts, each number's NLL a token, and how it was read."""

    found: list[bool]
    nll: list[float]
    n_tokens: int
    kept_tokens: float
    nbytes: int
    seconds: float


def budget_in(model: LoadedModel, n_tokens: int, budget: int, quant: QuantConfig) -> int:
    """Entries in these bits that take no more bytes than `budget` in 16."""
    allowed = int(budget * entry_nbytes(model.geometry, QuantConfig()))
    return min(fitting_tokens(allowed, n_tokens, model.geometry, quant), n_tokens)


def measure(
    model: LoadedModel,
    layout: Layout,
    text: str,
    placed: Facts,
    name: str,
    budget: int,
    bits: str,
) -> Reading:
    """Read the text once and ask for every fact."""
    prefix = layout.prefix(text)
    reads = make_scorer(name, model)
    quant = parse_kv_bits(bits, model.geometry)
    rules = EvictionConfig(
        budget_in(model, len(prefix.token_ids), budget, quant),
        reads.allocation,
        profile=reads.profile if reads.allocation == "profile" else None,
    )
    began = time.perf_counter()
    cache = prefill(model, prefix.token_ids, PrefillConfig(1024, rules, quant=quant), reads)
    seconds = time.perf_counter() - began
    tails = [layout.tail(QUESTION.format(place=place)) for place, _ in placed]
    encode = layout.tokenizer
    numbers = [encode(number, add_special_tokens=False)["input_ids"] for _, number in placed]
    views = [cache.view() for _ in tails]
    answers = generate_together(model, views, tails, 24)
    found = [
        number in layout.tokenizer.decode(ids)
        for ids, (_, number) in zip(answers, placed, strict=True)
    ]
    nll = nll_together(model, [cache.view() for _ in tails], tails, numbers)
    n_tokens = len(prefix.token_ids)
    return Reading(found, nll, n_tokens, cache.kept_tokens, cache.nbytes, seconds)


def grid_svg(rows: list[tuple[str, list[bool]]]) -> str:
    """Rows of squares, filled where the fact was found; readable without colour."""
    size, left, top = 34, 210, 44
    width, height = left + size * len(PLACES) + 20, top + size * len(rows) + 34
    parts = [f'<text x="{left}" y="22" font-size="14">depth in the document</text>']
    for i, depth in enumerate(DEPTHS):
        x = left + size * i + size / 2
        parts.append(
            f'<text x="{x}" y="{top - 6}" font-size="11" text-anchor="middle">{depth:.0%}</text>'
        )
    for j, (name, found) in enumerate(rows):
        y = top + size * j
        parts.append(f'<text x="8" y="{y + 22}" font-size="13">{name}</text>')
        for i, hit in enumerate(found):
            fill, mark = ("#0072b2", "&#10003;") if hit else ("#ffffff", "&#215;")
            ink = "#ffffff" if hit else "#b03000"
            x = left + size * i
            parts.append(
                f'<rect x="{x + 1}" y="{y + 1}" width="{size - 2}" height="{size - 2}" '
                f'fill="{fill}" stroke="#888888"/>'
                f'<text x="{x + size / 2}" y="{y + 23}" font-size="16" text-anchor="middle" '
                f'fill="{ink}">{mark}</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif"><rect width="{width}" height="{height}" fill="#ffffff"/>'
        + "\n".join(parts)
        + "</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--book", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--lengths", default="16000,128000")
    parser.add_argument("--scorers", default="retaining")
    parser.add_argument("--budget", type=int, default=4096)
    parser.add_argument("--kv-bits", default="16", help="with commas between, a row each")
    parser.add_argument("--facts", default="0", help="draws, as 0,1,2: a row for each")
    parser.add_argument("--out", type=Path, help="write the grid there as SVG")
    options = parser.parse_args()
    model = load_model(options.model, models_dir=options.models)
    layout = Layout(model.tokenizer)
    book = options.book.read_text(encoding="utf-8")
    rows, report = [], []
    lengths, draws = (
        [int(x) for x in given.split(",")] for given in (options.lengths, options.facts)
    )
    scorers, formats = options.scorers.split(","), options.kv_bits.split(",")
    for length, draw in product(lengths, draws):
        placed = drawn(draw)
        text = document(layout, book, length, placed)
        for scorer, bits in product(scorers, formats):
            read = measure(model, layout, text, placed, scorer, options.budget, bits)
            found = read.found
            print(
                f"{read.n_tokens:7} tokens  draw {draw}  {scorer:12} {bits:5} "
                f"{read.kept_tokens:6.0f} kept, "
                f"{read.nbytes / 1e6:.1f} MB  {''.join('x' if hit else '.' for hit in found)}  "
                f"{sum(found)}/10  NLL {sum(read.nll) / len(read.nll):.2f}  {read.seconds:.0f} s",
                flush=True,
            )
            which = f", draw {draw}" if len(draws) > 1 else ""
            rows.append((f"{read.n_tokens:,} tokens, {scorer}, {bits}{which}", found))
            report.append({"draw": draw, "scorer": scorer, "kv_bits": bits, **asdict(read)})
    if options.out:
        options.out.write_text(grid_svg(rows), encoding="utf-8")
    print(json.dumps({"budget": options.budget, "rows": report}))


if __name__ == "__main__":
    main()
