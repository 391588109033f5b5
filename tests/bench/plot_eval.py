"""The README's picture: kept fraction against what answers lose, one line a scorer.

    python tests/bench/plot_eval.py REPORT.json [REPORT.json ...] --out heads/quality.svg

REPORT.json is what `launch.py eval ... --json` printed. --rename FROM=TO names a line, --only takes
the scorers named.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from app.plots import Line, line_chart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="What answers lose when the cache is pruned")
    parser.add_argument("--rename", action="append", default=[], metavar="FROM=TO")
    parser.add_argument("--only", metavar="NAMES", help="scorers, with commas between")
    options = parser.parse_args()
    only = set(options.only.split(",")) if options.only else None
    names = dict(pair.split("=", 1) for pair in options.rename)
    points: dict[str, list[tuple[float, float]]] = {}
    for path in options.reports:
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if only is not None and row["scorer"] not in only:
                continue
            name = names.get(row["scorer"], row["scorer"])
            points.setdefault(name, []).append((row["kept"], row["nll_gap"]))
    lines = [Line(name, sorted(found)) for name, found in points.items()]
    chart = line_chart(
        options.title,
        "share of the cache kept",
        "nats an answer token over the full cache (lower is better)",
        lines,
        log_x=True,
    )
    options.out.write_text(chart, encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
