"""Scorers measured on a real model: what is promised is printed, and keeping less costs more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.cli import main

pytestmark = pytest.mark.weights

PEOPLE = [("Marten Voss", "a blind grey horse"), ("Ada Lind", "a chestnut boat with two masts")]
FILLER = "On the next day the weather was mild, and the people of the village mended their nets. "


EVAL = ["eval", "--model", "smollm2-135m", "--chunk", "128", "--json"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = []
    for name, thing in PEOPLE:
        text = f"{FILLER * 2}The keeper of Ellis Point was {name}, and owned {thing}. {FILLER * 8}"
        questions = [
            {"question": "Who was the keeper of Ellis Point?", "answers": [name]},
            {"question": f"What did {name} own?", "answers": [thing]},
        ]
        lines.append(json.dumps({"context": text, "questions": questions}))
    path = tmp_path / "keepers.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The report of a run that went well."""
    code = main([*EVAL, *arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    assert found["documents"] == 2 and found["questions"] == 4
    for row in found["rows"]:
        assert row["bytes"] == pytest.approx(row["kept"] * found["full"]["bytes"], rel=0.02)
    return found


def test_scorers_are_measured_against_the_full_cache(
    data: Path,
    models_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LONGREAD_MODELS", str(models_dir))
    answering = ["--scorers", "recency", "--kept", "0.5", "--max-new-tokens", "16"]
    found = evaluated(capsys, "--data", str(data), *answering)
    assert found["full"]["recall"] > 0.5, "the model finds what stands in the text"
    assert found["rows"][0]["nll_gap"] > 0.5, "the answer was evicted"
    rating = ["--scorers", "keydiff,recency", "--kept", "0.9,0.5", "--chunked", "--no-generate"]
    found = evaluated(capsys, "--data", str(data), *rating)
    gaps = {(r["scorer"], r["kept"]): r["nll_gap"] for r in found["rows"]}
    assert gaps["keydiff", 0.9] < 0.5 < gaps["recency", 0.5]
