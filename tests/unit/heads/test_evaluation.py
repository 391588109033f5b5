"""The evaluation on a tiny model: its marks are those of asking one by one, and it resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import torch

from engine.batch import nll_together
from engine.errors import InvalidSetting, QuestionSetBad, ScorerUnavailable
from engine.eviction import EvictionConfig, Profile
from engine.prefill import PrefillConfig, prefill
from engine.pruning import pruned
from engine.scorers.expected_attention import ExpectedAttentionScorer
from engine.scoring import Scorer
from engine.view import CacheView
from heads import oracles
from heads.catalog import make_scorer
from heads.evaluation import EvalSettings, Refused, evaluate, overlap_of
from heads.evaluation_report import make_report
from heads.metrics import answer_recall, token_f1
from heads.oracles import scorer_of_oracle
from heads.question_set import Question, QuestionedDocument, read_question_set
from heads.results import DocumentResult, ResultLog, Row
from tests.fakes import TinyModel, tiny_model, tokens
from tests.unit.heads import number_layout
from tests.unit.heads.number_layout import CLOSING, NumberLayout

HEADER = [3, 4, 5]
SETTINGS = EvalSettings(("keydiff", "recency"), (0.9, 0.6), chunk_tokens=64, max_new_tokens=6)


class FakeTokenizer:
    """A token is a number in the text."""

    def __call__(self, text: str, **how: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids: list[int], **how: Any) -> str:
        return " ".join(str(i) for i in ids)


@dataclass
class FakePrefix:
    token_ids: list[int]
    n_header: int = len(HEADER)


class FakeLayout:
    tokenizer: Any = FakeTokenizer()

    def prefix(self, text: str) -> FakePrefix:
        return FakePrefix(HEADER + self.tokenizer(text)["input_ids"])

    def tail(self, question: str) -> list[int]:
        return [6, *self.tokenizer(question)["input_ids"], 7]


def numbers(n: int, seed: int) -> str:
    return FakeTokenizer().decode(tokens(n, seed))


def document(n: int, seed: int, n_questions: int = 3) -> QuestionedDocument:
    asked = [
        Question(numbers(4 + i, seed + i), (numbers(2 + i, seed + 9 + i), numbers(2, seed)))
        for i in range(n_questions)
    ]
    return QuestionedDocument(f"document {seed}", numbers(n, seed), tuple(asked))


DOCUMENTS = [document(300, 1), document(210, 2, 2)]


def measured(settings: EvalSettings, model: TinyModel | None = None, **how: Any) -> Any:
    tiny: Any = model or tiny_model()
    make = how.pop("make", lambda name: make_scorer(name, tiny))
    documents = how.pop("documents", DOCUMENTS)
    layout = how.pop("layout", FakeLayout())
    return evaluate(tiny, layout, documents, settings, make, **how)


def report(settings: EvalSettings, **how: Any) -> dict[str, Any]:
    return make_report("tiny", settings, *measured(settings, **how))


def test_a_row_is_the_pruned_full_cache_asked_one_by_one() -> None:
    tiny: Any = tiny_model()
    (found, _), _ = measured(SETTINGS, tiny)
    layout, doc = FakeLayout(), DOCUMENTS[0]
    ids = layout.prefix(doc.text).token_ids
    cache = prefill(
        tiny, ids, PrefillConfig(64, EvictionConfig(None)), make_scorer("keydiff", tiny)
    )
    rules = EvictionConfig(round(0.6 * len(ids)), "global")
    small = pruned(cache, None, rules)
    rows = {(r.scorer, r.kept): r for r in found.rows}
    assert list(rows) == [(s, k) for s in SETTINGS.scorers for k in SETTINGS.kept]
    for source, row in ((cache, found.full), (small, rows["keydiff", 0.6])):
        expected = [
            nll_together(
                tiny,
                [source.view()],
                [layout.tail(q.text)],
                [layout.tokenizer(q.answers[0])["input_ids"]],
            )[0]
            for q in doc.questions
        ]
        assert row.nll == pytest.approx(expected, abs=1e-4)
        assert row.bytes == source.nbytes
        assert row.kept_tokens == source.kept_tokens


def test_generated_answers_are_marked_against_the_true_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = [[5, 6], [7], [8, 9, 10]]
    monkeypatch.setattr("heads.evaluation.generate_together", lambda model, v, p, n: said)
    answers = [("5 6 7",), ("1", "7"), ("11",)]
    asked = tuple(Question("5 6", a) for a in answers)
    doc = QuestionedDocument("one", numbers(200, 1), asked)
    (found,), _ = measured(SETTINGS, documents=[doc])
    texts = ["5 6", "7", "8 9 10"]
    assert found.full.f1 == [token_f1(t, a) for t, a in zip(texts, answers, strict=True)]
    assert found.full.recall == [answer_recall(t, a) for t, a in zip(texts, answers, strict=True)]


@pytest.mark.parametrize("chunked", [False, True])
def test_keeping_all_loses_nothing(chunked: bool) -> None:
    settings = replace(SETTINGS, kept=(1.0,), chunked=chunked)
    found = report(settings)
    assert found["questions"] == 5 and found["documents"] == 2
    for row in found["rows"]:
        assert row["nll_gap"] == pytest.approx(0, abs=1e-5)
        assert row["f1"] == found["full"]["f1"]
        assert row["by_question_index"] == pytest.approx([0, 0, 0], abs=1e-5)


def test_chunked_rows_are_readings_with_evictions() -> None:
    tiny: Any = tiny_model()
    (found, _), _ = measured(replace(SETTINGS, chunked=True, allocation="uniform"), tiny)
    ids = FakeLayout().prefix(DOCUMENTS[0].text).token_ids
    rules = EvictionConfig(round(0.6 * len(ids)), "uniform")
    cache = prefill(tiny, ids, PrefillConfig(64, rules), make_scorer("keydiff", tiny))
    row = next(r for r in found.rows if (r.scorer, r.kept) == ("keydiff", 0.6))
    assert row.bytes == cache.nbytes and row.kept_tokens == rules.budget_tokens
    (whole, _), _ = measured(replace(SETTINGS, allocation="uniform"), tiny)
    assert row.nll != next(r for r in whole.rows if (r.scorer, r.kept) == ("keydiff", 0.6)).nll


def test_places_are_those_that_were_asked_for() -> None:
    settings = replace(SETTINGS, scorers=("keydiff",), kept=(1.0, 0.3), chunked=True)

    def likelihoods(positions: Any) -> list[list[float]]:
        (found, _), _ = measured(replace(settings, positions=positions))
        return [row.nll for row in found.rows]

    usual, moved = likelihoods("auto"), likelihoods("shared")
    assert usual == likelihoods("original")
    assert moved[0] == pytest.approx(usual[0]), "with nothing evicted both are the document's"
    assert moved[1] != pytest.approx(usual[1])


def test_the_report_is_means_over_questions_and_errors_over_documents() -> None:
    results, _ = measured(SETTINGS)
    found = make_report("tiny", SETTINGS, results)
    assert found["model"] == "tiny" and found["allocation"] == "auto"
    assert found["n_tokens"] == 3 + 255
    for row, *parts in zip(found["rows"], *(r.rows for r in results), strict=True):
        gaps = [
            torch.tensor(p.nll) - torch.tensor(r.full.nll)
            for p, r in zip(parts, results, strict=True)
        ]
        assert row["nll_gap"] == pytest.approx(float(torch.cat(gaps).mean()), abs=1e-5)
        without = torch.stack([g.mean() for g in gaps])  # of two, one is left
        assert row["nll_gap_se"] == pytest.approx(float(without.std() / 2**0.5), abs=1e-5)
        assert row["nll"] - found["full"]["nll"] == pytest.approx(row["nll_gap"], abs=1e-5)
        assert row["overlap"] is None
        assert row["bytes"] == sum(p.bytes for p in parts) / 2


def marked(name: str, full: list[float], kept: list[float]) -> DocumentResult:
    """A document with these F1 of the full cache and of one row."""
    rows = [
        Row(scorer, 1.0, f1, f1, [1.0] * len(f1), 1, 1.0, None, 0.0)
        for scorer, f1 in (("full", full), ("a", kept))
    ]
    return DocumentResult(name, 9, len(full), rows[0], [rows[1]])


def test_the_error_of_an_f1_ratio_is_that_of_documents_left_out() -> None:
    results = [
        marked("a", [0.5, 0.7], [0.4, 0.7]),
        marked("b", [0.2], [0.3]),
        marked("c", [0.9, 0.0, 0.3], [0.1, 0.1, 0.1]),
    ]
    (row,) = make_report("tiny", SETTINGS, results)["rows"]
    assert row["f1_ratio"] == pytest.approx(1.7 / 2.6)
    without = [0.6 / 1.4, 1.4 / 2.4, 1.4 / 1.4]
    middle = sum(without) / 3
    expected = (2 / 3 * sum((r - middle) ** 2 for r in without)) ** 0.5
    assert row["f1_ratio_se"] == pytest.approx(expected)
    for few in (results[:1], [marked("a", [0.0], [0.1]), marked("b", [0.5], [0.5])]):
        assert make_report("tiny", SETTINGS, few)["rows"][0]["f1_ratio_se"] is None


def likely(name: str, gaps: list[float]) -> DocumentResult:
    """A document whose answers lose so many nats in one row."""
    whole, kept = (
        Row(scorer, 1.0, None, None, nll, 1, 1.0, None, 0.0)
        for scorer, nll in (("full", [1.0] * len(gaps)), ("a", [1 + gap for gap in gaps]))
    )
    return DocumentResult(name, 9, len(gaps), whole, [kept])


def test_the_error_of_a_gap_is_that_of_the_mean_over_questions() -> None:
    """Documents with many questions weigh more in the mean, and so they do in its error."""
    results = [likely("a", [0.9]), likely("b", [0.1, 0.3]), likely("c", [0.2, 0.4, 0.0, 0.2])]
    (row,) = make_report("tiny", SETTINGS, results)["rows"]
    assert row["nll_gap"] == pytest.approx(2.1 / 7)
    without = [1.2 / 6, 1.7 / 5, 1.3 / 3]
    middle = sum(without) / 3
    expected = (2 / 3 * sum((gap - middle) ** 2 for gap in without)) ** 0.5
    assert row["nll_gap_se"] == pytest.approx(expected)
    even = [likely("a", [0.1, 0.3]), likely("b", [0.5, 0.5]), likely("c", [0.0, 0.0])]
    (row,) = make_report("tiny", SETTINGS, even)["rows"]
    assert row["nll_gap_se"] == pytest.approx(stdev([0.2, 0.5, 0.0]) / 3**0.5)
    (row,) = make_report("tiny", SETTINGS, results[:1])["rows"]
    assert row["nll_gap_se"] is None


def test_a_run_without_answers_has_likelihoods_alone() -> None:
    found = report(replace(SETTINGS, generate=False))
    assert found["full"]["f1"] is None and found["full"]["recall"] is None
    assert all(r["f1"] is None and r["f1_ratio"] is None and r["nll"] > 0 for r in found["rows"])


def test_the_budget_is_never_below_what_is_protected() -> None:
    assert SETTINGS.eviction(1000, 0.5).budget_tokens == 500
    assert SETTINGS.eviction(1000, 0.001).budget_tokens == 4 + 16 + 1
    assert replace(SETTINGS, sink_tokens=20).eviction(1000, 0.001).budget_tokens == 20 + 16 + 1


def by_position(
    model: Any, cache: Any, layout: Any, prefix: Any, asked: Any
) -> dict[int, torch.Tensor]:
    """An oracle that keeps the newest, as recency does; sees two pieces of every question."""
    assert cache.n_seen == len(prefix.token_ids) and all(len(pair) == 2 for pair in asked)
    row = torch.arange(cache.n_seen).float().expand(2, -1)
    return dict.fromkeys(range(len(cache.layers)), row)


@pytest.mark.parametrize("chunked", [False, True])
def test_oracles_are_measured_and_compared_with(
    chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(oracles.ORACLES, "newest_oracle", by_position)
    names = ("keydiff", "recency", "newest_oracle")
    settings = replace(SETTINGS, scorers=names, kept=(0.6,), oracle="newest_oracle")
    keydiff, recency, newest = report(replace(settings, chunked=chunked))["rows"]
    assert newest["overlap"] == 1 and recency["overlap"] == 1
    assert 0 < keydiff["overlap"] < 1
    if not chunked:
        assert newest["nll"] == recency["nll"]


@pytest.mark.parametrize("oracle", ["newest_oracle", "cis_oracle"])
@pytest.mark.parametrize("equal_bytes", [False, True])
def test_an_oracle_keeps_what_it_keeps(
    oracle: str, equal_bytes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it shares out the budget in a way of its own, and in bits that hold more."""
    monkeypatch.setitem(oracles.ORACLES, "newest_oracle", by_position)
    pruned_by: list[Any] = []

    def pruning(cache: Any, scores: Any, rules: Any) -> Any:
        pruned_by.append(rules)
        return pruned(cache, scores, rules)

    monkeypatch.setattr("heads.evaluation.pruned", pruning)
    settings = replace(
        SETTINGS,
        scorers=("recency", oracle),
        kept=(0.5,),
        oracle=oracle,
        kv_bits=("16", "k8v4"),
        equal_bytes=equal_bytes,
        generate=False,
    )
    found = report(settings, documents=[document(600, 1, 1)])["rows"]
    rows = {row["scorer"]: row["overlap"] for row in found}
    assert rows[oracle] == rows[f"{oracle}+k8v4"] == 1
    if oracle == "newest_oracle":
        assert set(rows.values()) == {1}
    sizes = {rules.budget_tokens for rules in pruned_by}
    assert len(sizes) == 1 + equal_bytes
    assert len(pruned_by) == 4 + len(sizes), "one set to compare with for each number of entries"


def test_overlaps_of_another_reckoning_are_not_taken_from_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(oracles.ORACLES, "newest_oracle", by_position)
    settings = replace(SETTINGS, scorers=("recency",), kept=(0.5,), generate=False)

    def logged(name: str, oracle: str | None) -> int:
        path = tmp_path / name
        asked = replace(settings, oracle=oracle)
        measured(asked, documents=DOCUMENTS[1:], log=ResultLog(path))
        return len(path.read_text(encoding="utf-8").splitlines())

    assert logged("without", None) == logged("with", "newest_oracle") == 1
    assert logged("with", "newest_oracle") == 1
    monkeypatch.setattr("heads.evaluation.OVERLAP_KEY", "another")
    assert logged("without", None) == 1 and logged("with", "newest_oracle") == 2


def test_overlap_counts_entries_of_the_same_layer_and_head() -> None:
    tiny: Any = tiny_model()
    rules = EvictionConfig(30, "uniform", stabilizer_tokens=8, local_tokens=4)
    whole = prefill(
        tiny, tokens(100), PrefillConfig(100, EvictionConfig(None)), make_scorer("random", tiny)
    )
    small = pruned(whole, None, rules)
    assert overlap_of(small, whole) == 1 and overlap_of(small, small) == 1
    assert overlap_of(whole, small) == pytest.approx(0.3)


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log" / "run.jsonl"
    measured(SETTINGS, documents=DOCUMENTS[:1], log=ResultLog(path))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"version": 1, "key": "cut o')
    read = []

    class Counting(type(make_scorer("keydiff", tiny_model()))):  # type: ignore[misc]
        def reset(self) -> None:
            read.append(1)
            super().reset()

    def make(name: str) -> Scorer:
        return Counting() if name == "keydiff" else make_scorer(name, tiny_model())

    first, _ = measured(SETTINGS, log=ResultLog(path), make=make)
    n_resets = len(read)
    again, _ = measured(SETTINGS, log=ResultLog(path), make=make)
    assert again == first
    assert [r.name for r in again] == [d.name for d in DOCUMENTS]
    once = n_resets - (len(read) - n_resets)
    assert once == 1, "only the second document was read, and only once"
    measured(replace(SETTINGS, kept=(0.5,)), log=ResultLog(path))
    assert len(path.read_text(encoding="utf-8").splitlines()) == 5


@pytest.mark.parametrize(
    "line",
    [
        '{"version": 1}',
        '{"version": 1, "key": "k"}',
        '{"version": 1, "key": ["k"], "result": {}}',
        '{"version": 1, "key": "KEY", "result": {"name": "a"}}',
        '{"version": 1, "key": "KEY", "result": {"full": null, "rows": [3]}}',
        "[" * 100_000,
    ],
)
def test_a_line_of_a_log_that_is_no_result_is_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / "run.jsonl"
    first, _ = measured(SETTINGS, documents=DOCUMENTS[:1], log=ResultLog(path))
    entry = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(line.replace("KEY", entry["key"]) + "\n", encoding="utf-8")
    (again,), _ = measured(SETTINGS, documents=DOCUMENTS[:1], log=ResultLog(path))
    assert [row.nll for row in again.rows] == [row.nll for row in first[0].rows]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_a_log_that_cannot_be_written_is_found_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "run.jsonl"):
        with pytest.raises(OSError, match="directory"):
            ResultLog(path)


def test_a_log_knows_how_a_scorer_shares_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"

    def make(allocation: Any) -> Callable[[str], Scorer]:
        scorer = make_scorer("keydiff", tiny_model())
        scorer.allocation = allocation
        return lambda name: scorer if name == "keydiff" else make_scorer(name, tiny_model())

    for n_lines, allocation in ((1, "global"), (1, "global"), (2, "uniform")):
        measured(SETTINGS, documents=DOCUMENTS[:1], log=ResultLog(path), make=make(allocation))
        assert len(path.read_text(encoding="utf-8").splitlines()) == n_lines


def test_a_document_beyond_the_window_is_refused_and_the_rest_measured() -> None:
    outcomes: list[Any] = []
    documents = [document(2100, 3), DOCUMENTS[1]]
    results, refused = measured(
        SETTINGS, documents=documents, on_document=lambda n, o: outcomes.append((n, o))
    )
    assert [r.name for r in results] == ["document 2"]
    assert refused[0].name == "document 3" and "2103 tokens" in refused[0].cause
    assert outcomes[0] == (0, refused[0]) and isinstance(outcomes[0][1], Refused)
    with pytest.raises(InvalidSetting, match="window of 4096"):
        measured(SETTINGS, documents=documents[:1])


def asking(n_question: int, n_answer: int, n: int = 210) -> QuestionedDocument:
    """A document whose second question and its answer have so many tokens."""
    doc = document(n, 4, 1)
    second = Question(numbers(n_question, 8), (numbers(n_answer, 9),))
    return replace(doc, questions=(*doc.questions, second))


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("too_long", [asking(3900, 3), asking(5, 3900)])
def test_a_question_beyond_the_window_costs_its_own_document_alone(
    too_long: QuestionedDocument, generate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def reading(model: Any, ids: Any, *rest: Any, **how: Any) -> Any:
        read.append(len(ids))
        return prefill(model, ids, *rest, **how)

    monkeypatch.setattr("heads.evaluation.prefill", reading)
    settings = replace(SETTINGS, generate=generate)
    results, refused = measured(settings, documents=[too_long, DOCUMENTS[1]])
    assert [r.name for r in results] == ["document 2"] and len(read) == 1
    assert refused[0].name == "document 4"
    assert "Question 2 of document 4 needs 390" in refused[0].cause
    assert "room for 3883" in refused[0].cause


def test_a_question_that_fills_the_window_is_asked() -> None:
    """213 tokens of document, 3 around the question, and an answer whose last is not read."""
    settings = replace(SETTINGS, scorers=("recency",), kept=(0.6,), generate=False)
    results, refused = measured(settings, documents=[asking(3879, 3)])
    assert len(results) == 1 and not refused
    with pytest.raises(InvalidSetting, match="needs 3884 tokens"):
        measured(settings, documents=[asking(3880, 3)])


def test_a_question_beyond_what_was_moved_together_costs_its_own_document_alone() -> None:
    settings = replace(
        SETTINGS, scorers=("recency",), kept=(0.5,), chunked=True, full=False, positions="shared"
    )
    results, refused = measured(settings, documents=[asking(4000, 3), DOCUMENTS[1]])
    assert [r.name for r in results] == ["document 2"]
    assert refused[0].name == "document 4" and "room for 3990" in refused[0].cause


def test_a_document_beyond_the_window_at_its_own_places_is_refused_as_such() -> None:
    settings = replace(
        SETTINGS, scorers=("recency",), kept=(0.5,), chunked=True, full=False, positions="original"
    )
    results, refused = measured(settings, documents=[document(4200, 3), DOCUMENTS[1]])
    assert [r.name for r in results] == ["document 2"]
    assert "4203 tokens at their original positions" in refused[0].cause


def test_a_document_without_room_to_be_repeated_is_refused_and_the_rest_measured() -> None:
    settings = replace(
        SETTINGS,
        scorers=("recency",),
        kept=(0.5,),
        chunked=True,
        full=False,
        positions="original",
        read_twice=True,
        chunk_tokens=1024,
    )
    documents = [number_layout.document(n, seed) for n, seed in ((4020, 3), (4200, 4), (300, 5))]
    results, refused = measured(settings, documents=documents, layout=NumberLayout())
    assert [r.name for r in results] == ["document 5"]
    assert [r.name for r in refused] == ["document 3", "document 4"]
    assert "no room to repeat" in refused[0].cause


def test_without_a_full_reading_a_long_document_is_read_in_chunks() -> None:
    settings = replace(
        SETTINGS, scorers=("recency",), kept=(0.1,), chunked=True, full=False, chunk_tokens=512
    )
    found = report(settings, documents=[document(2100, 3)])
    assert found["full"]["nll"] is None
    (row,) = found["rows"]
    assert row["nll"] > 0 and row["nll_gap"] is None and row["by_question_index"] == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"scorers": ()}, InvalidSetting),
        ({"kept": (0.5, 0.0)}, InvalidSetting),
        ({"kv_bits": ()}, InvalidSetting),
        ({"kept": (1.5,)}, InvalidSetting),
        ({"full": False}, InvalidSetting),
        ({"positions": "shared"}, InvalidSetting),
        ({"chunked": True, "positions": "elsewhere"}, InvalidSetting),
        ({"chunked": True, "refit": True, "kv_bits": ("16", "4")}, InvalidSetting),
        ({"oracle": "none_such"}, ScorerUnavailable),
    ],
)
def test_settings_that_cannot_work_are_refused(
    changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize("name", ["keydiff", "kvzip_oracle"])
def test_a_profile_that_nobody_has_is_refused_before_anything_is_read(name: str) -> None:
    settings = replace(SETTINGS, scorers=(name,), allocation="profile")
    with pytest.raises(InvalidSetting, match="no profile"):
        measured(settings, documents=[])


def test_an_oracle_to_compare_with_that_has_no_profile_is_refused_as_early() -> None:
    scorer = make_scorer("keydiff", tiny_model())
    scorer.profile = Profile((1.0,), (((1.0, 1.0),) * 2,))
    settings = replace(SETTINGS, scorers=("keydiff",), allocation="profile", oracle="kvzip_oracle")
    with pytest.raises(InvalidSetting, match="no profile"):
        measured(settings, documents=[], make=lambda name: scorer)


def test_importance_by_attention_is_compared_within_a_head() -> None:
    rules = {name: scorer_of_oracle(name).allocation for name in oracles.ORACLES}
    assert rules.pop("cis_oracle") == "uniform" and set(rules.values()) == {"global"}
    model: Any = tiny_model()
    names = ("accumulated", "key_norm", "keydiff")
    found = {name: make_scorer(name, model).allocation for name in names}
    assert found == {"accumulated": "uniform", "key_norm": "uniform", "keydiff": "global"}
    assert ExpectedAttentionScorer.allocation == "uniform"


@pytest.mark.parametrize("n_document", [1900, 2048 - len(HEADER) - len(CLOSING)])
def test_the_longest_document_is_repeated_inside_the_window(
    n_document: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    furthest: list[int] = []
    attend = CacheView.attend

    def attending(self: CacheView, *arguments: Any) -> torch.Tensor:
        out = attend(self, *arguments)
        furthest.append(self.cache.n_seen + self.n_tail)
        return out

    monkeypatch.setattr(CacheView, "attend", attending)
    settings = replace(SETTINGS, scorers=("kvzip_oracle",), kept=(0.5,), generate=False)
    measured(settings, documents=[number_layout.document(n_document, 3)], layout=NumberLayout())
    assert n_document + 1024 < max(furthest) <= 4096


GOOD = '{"context": "c", "questions": [{"question": "q", "answers": ["a", "b"]}]}'


def test_a_question_set_is_read_up_to_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    two = GOOD.replace("]}]", ']}, {"question": "r", "answers": ["d"]}]')
    path.write_text(f"{two}\n\n{GOOD}\nnot JSON\n", encoding="utf-8")
    first, second = read_question_set(path, 2)
    assert [q.text for q in first.questions] == ["q", "r"]
    assert second.questions == (Question("q", ("a", "b")),)
    assert second.name == "set.jsonl, line 3"
    assert len(read_question_set(path, 1, 1)[0].questions) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{GOOD}\n{{", "line 2 is not JSON"),
        ("[]", "list where an object"),
        ('{"questions": []}', "'context'"),
        ('{"context": "c"}', "'questions'"),
        ('{"context": "c", "questions": []}', "'questions'"),
        ('{"context": "c", "questions": ["q"]}', "str where an object"),
        (GOOD.replace('["a", "b"]', "[]"), "'answers' of 'q'"),
        (GOOD.replace('["a", "b"]', '"a"'), "'answers' of 'q'"),
        (GOOD.replace('"b"', '" "'), "'answers' of 'q'"),
        ("\n", "no documents"),
        (f"{GOOD}\n{GOOD}".replace('"c"', '"c \\ud83d"'), "line 1: 'context' holds half"),
        (f"{GOOD}\n" + GOOD.replace('"q"', '"q \\ud83d"'), "line 2: 'question' holds half"),
        (GOOD.replace('"b"', '"\\ude00"'), "line 1: 'answers' of 'q' holds half"),
        (f"{GOOD}\n" + "[" * 100_000, "line 2 is nested too deeply"),
    ],
)
def test_a_bad_question_set_is_refused_by_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QuestionSetBad, match=said):
        read_question_set(path)


def test_a_whole_surrogate_pair_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(GOOD.replace('"c"', '"c \\ud83d\\ude00"'), encoding="utf-8-sig")
    (only,) = read_question_set(path)
    assert only.text == "c \N{GRINNING FACE}"


def test_a_question_set_that_is_no_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_bytes(b"\xff\xfe\x00")
    for path, said in ((tmp_path / "set.jsonl", "UTF-8"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(QuestionSetBad, match=said):
            read_question_set(path)
