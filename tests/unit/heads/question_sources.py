"""Small files in the layout of each public set, for the tests of its builder."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("question_id", "question", *(f"answer{i}" for i in range(1, 7)))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def write_json_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def write_tale(
    folder: Path, part: str, name: str, sections: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """rows: question, then up to six answers."""
    write_csv(
        folder / "section-stories" / part / f"{name}-story.csv",
        ("section", "text"),
        [(str(i), text) for i, text in enumerate(sections, 1)],
    )
    padded = [(str(i), *row, *[""] * (7 - len(row))) for i, row in enumerate(rows, 1)]
    write_csv(folder / "questions" / part / f"{name}-questions.csv", COLUMNS, padded)


def meeting(words: str) -> dict[str, Any]:
    return {
        "general_query_list": [{"query": "Summarize the meeting.", "answer": "They talked."}],
        "specific_query_list": [
            {"query": "What did A want?", "answer": "Tea.", "relevant_text_span": [["0", "1"]]}
        ],
        "meeting_transcripts": [
            {"speaker": "A", "content": words},
            {"speaker": "B", "content": "Yes ."},
        ],
    }


def write_meetings(folder: Path, meetings: dict[str, dict[str, Any]]) -> Path:
    """Meetings by "DOMAIN/ID"."""
    for name, value in meetings.items():
        domain, number = name.split("/")
        path = folder / domain / "train" / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")
    return folder


def squad(articles: Sequence[Sequence[tuple[str, dict[str, list[str]]]]]) -> dict[str, Any]:
    """Articles of paragraphs of (context, {question: answers})."""
    return {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [
                            {"question": q, "answers": [{"text": a, "answer_start": 0} for a in xs]}
                            for q, xs in asked.items()
                        ],
                    }
                    for context, asked in paragraphs
                ]
            }
            for paragraphs in articles
        ]
    }


def nq_row(i: int) -> dict[str, Any]:
    text = f"Passage {i} says that the answer of row {i} is answer{i}x and nothing else."
    return {
        "question": f"what is the answer of row {i}",
        "answers": [f"Answer{i}x"],
        "ctxs": [{"title": f"Title {i}", "text": text, "hasanswer": True, "isgold": True}],
    }
