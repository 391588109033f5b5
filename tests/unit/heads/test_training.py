"""Recordings, and a whole training on them: cut off, gone on with, divided, saved."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import InvalidSetting, ScorerUnavailable
from engine.prefill import prefill
from heads import training
from heads.answer_fit import AnswerFitSettings
from heads.labels import KINDS, output_grams
from heads.lessons import HELD_EVERY, is_held_out, lessons_of
from heads.question_set import Question
from heads.recordings import (
    RecordSettings,
    kinds_for,
    load_recording,
    record,
    recording_path,
    save_recording,
)
from heads.retaining import (
    HeadCard,
    HeadScorer,
    RetainingHead,
    head_digest,
    load_heads,
    save_heads,
)
from heads.self_asked import OPENINGS, PARTS, one_question, self_asked
from heads.train import PROFILE_KEPT, FitSettings
from heads.train_plan import TrainSettings, plan
from heads.training import train
from tests.fakes import tiny_model, tokens
from tests.unit.heads.number_layout import CLOSING, HEADER, NumberLayout, NumberPrefix, document

READ = RecordSettings(chunk_tokens=64)
FIT = FitSettings(width=4, epochs=1.0, batch_tokens=64)
LOCRET = FitSettings("locret", "cis", "locret", 8, 1.0, batch_tokens=64)
SETTINGS = TrainSettings(READ, FIT, rounds=2, kept=0.5)
LAYOUT: Any = NumberLayout()
DOCUMENTS = [document(n, n) for n in (150, 170, 190)]
CARD = HeadCard("tiny", "blend", "three documents")


def recorded(settings: RecordSettings = READ, scorer: Any = None, which: Any = None) -> Any:
    model: Any = tiny_model()
    return record(model, LAYOUT, which or DOCUMENTS[0], settings, output_grams(model), scorer)


def trained(work: Path, settings: TrainSettings = SETTINGS, **how: Any) -> Any:
    model: Any = tiny_model()
    card = replace(CARD)
    return train(model, LAYOUT, DOCUMENTS, settings, work, work / "out.safetensors", card, **how)


# Recordings.


def test_a_recording_has_states_and_labels_of_everything_read() -> None:
    found = recorded(replace(READ, kinds=("kvzip", "kvzip_plus", "cis")))
    n = len(HEADER) + 150
    assert found.n_tokens == n and found.n_header == 3 and found.seconds > 0
    assert found.hidden.shape == (2, n, 48) and found.hidden.dtype == torch.float16
    assert set(found.labels) == {"kvzip", "kvzip_plus", "questions", "cis"}
    for label in found.labels.values():
        assert label.shape == (2, 2, n) and label.dtype == torch.float16
        assert bool(label.isfinite().all())


@pytest.mark.parametrize(
    ("label", "measured"),
    [
        ("blend", {"kvzip_plus", "questions"}),
        ("kvzip_plus", {"kvzip_plus", "questions"}),
        ("kvzip", {"kvzip", "questions"}),
        ("questions", {"questions"}),
        ("cis", {"cis", "questions"}),
    ],
)
def test_only_what_a_label_needs_is_measured(label: str, measured: set[str]) -> None:
    assert set(recorded(replace(READ, kinds=kinds_for(label))).labels) == measured


def test_hidden_states_are_the_inputs_of_the_attention() -> None:
    model: Any = tiny_model()
    inputs: list[torch.Tensor] = []

    class Plain:
        """A causal store of nothing but this forward."""

        wants_hidden = True

        def see_hidden(self, layer: int, hidden: torch.Tensor) -> None:
            inputs.append(hidden)

        def attend(self, layer: int, q: Any, k: Any, v: Any, scale: float) -> Any:
            at = torch.arange(q.shape[1])
            q, k = model.rotary.rotate(q, at), model.rotary.rotate(k, at)
            return torch.nn.functional.scaled_dot_product_attention(
                q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0), is_causal=True, scale=scale
            )

    ids = LAYOUT.prefix(DOCUMENTS[0].text).token_ids[: -len(CLOSING)]
    with torch.inference_mode():
        model.model.model(input_ids=torch.tensor([ids]), use_cache=False, store=Plain())
    expected = torch.stack(inputs)
    torch.testing.assert_close(recorded().hidden.float(), expected, atol=2e-2, rtol=1e-2)


def test_on_policy_states_differ_and_have_no_labels() -> None:
    model: Any = tiny_model()
    scorer = HeadScorer(RetainingHead(model.geometry, 4).requires_grad_(False), CARD, "x")
    kept = replace(READ, kept=0.5, replay=False)
    whole, pruned = recorded(), recorded(kept, scorer)
    assert pruned.labels == {} and pruned.hidden.shape == whole.hidden.shape
    assert torch.equal(whole.hidden[:, :64], pruned.hidden[:, :64]), "nothing is gone yet"
    assert not torch.allclose(whole.hidden[1, -20:], pruned.hidden[1, -20:], atol=1e-2)


def test_a_document_cut_short_is_asked_other_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def own(model: Any, layout: Any, cache: Any, closing: Any) -> list[tuple[str, str]]:
        asked.append(cache.n_seen)
        return [("12 13", "14"), ("15", " ")]

    monkeypatch.setattr("heads.recordings.self_asked", own)
    asking = replace(READ, ask_itself=True)
    whole, cut = recorded(asking), recorded(replace(asking, max_tokens=100))
    assert asked == [100] and cut.n_tokens == 100 and "questions" in cut.labels
    assert set(whole.labels) == set(cut.labels)
    unasked = recorded(replace(READ, max_tokens=100))
    assert asked == [100] and set(unasked.labels) == {"kvzip_plus"}, "unless told, nothing is asked"
    monkeypatch.setattr("heads.recordings.self_asked", lambda *_: [("15", " ")])
    none = recorded(asking, which=replace(DOCUMENTS[0], questions=()))
    assert set(none.labels) == {"kvzip_plus"}, "an empty answer is no label"


def test_questions_are_spread_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    measure = training.record.__globals__["measure"]

    def counting(model: Any, cache: Any, grams: Any, probes: Any, labels: Any, **how: Any) -> None:
        sent.append(len(probes))
        measure(model, cache, grams, probes, labels, **how)

    monkeypatch.setattr("heads.recordings.measure", counting)
    many = document(80, 1, n_questions=9)
    recorded(replace(READ, max_questions=4, replay=False), which=many)
    assert sent == [4]


def test_a_saved_recording_comes_back(tmp_path: Path) -> None:
    found, path = recorded(), tmp_path / "deep" / "r.safetensors"
    save_recording(path, found)
    loaded = load_recording(path)
    assert torch.equal(loaded.hidden, found.hidden) and loaded.n_header == found.n_header
    assert loaded.seconds == pytest.approx(found.seconds, abs=1e-3)
    assert set(loaded.labels) == set(found.labels)
    assert all(torch.equal(loaded.labels[k], found.labels[k]) for k in found.labels)
    assert [p.name for p in path.parent.iterdir()] == ["r.safetensors"]
    light = load_recording(path, hidden=False)
    assert light.hidden.numel() == 0 and set(light.labels) == set(found.labels)


class OtherLayout(NumberLayout):
    def prefix(self, text: str) -> NumberPrefix:
        found = super().prefix(text)
        return replace(found, token_ids=[1, *found.token_ids], n_header=found.n_header + 1)


def test_a_recording_belongs_to_model_layout_text_settings_and_evictor() -> None:
    model: Any = tiny_model()
    other_model: Any = replace(tiny_model(), fingerprint={"weights": "other"})
    doc = DOCUMENTS[0]
    folder = Path("r")
    base = recording_path(folder, model, LAYOUT, doc, READ, "")
    assert base == recording_path(folder, model, LAYOUT, replace(doc, name="elsewhere"), READ, "")
    others = [
        recording_path(folder, other_model, LAYOUT, doc, READ, ""),
        recording_path(folder, model, OtherLayout(), doc, READ, ""),
        recording_path(folder, model, LAYOUT, replace(doc, text=doc.text + " 9"), READ, ""),
        recording_path(folder, model, LAYOUT, replace(doc, questions=doc.questions[:1]), READ, ""),
        recording_path(
            folder, model, LAYOUT, replace(doc, questions=(Question("1", ("2",)),)), READ, ""
        ),
        recording_path(folder, model, LAYOUT, doc, replace(READ, max_tokens=99), ""),
        recording_path(folder, model, LAYOUT, doc, replace(READ, kept=0.5), ""),
        recording_path(folder, model, LAYOUT, doc, READ, "abc"),
    ]
    assert len({base, *others}) == len(others) + 1


# Questions of the model's own.


def test_the_model_asks_different_questions_and_answers_each() -> None:
    from engine.eviction import EvictionConfig
    from engine.prefill import PrefillConfig, prefill
    from engine.scorers.recency import RecencyScorer

    model: Any = tiny_model()
    cache = prefill(model, tokens(80), PrefillConfig(80, EvictionConfig(None)), RecencyScorer())
    pairs = self_asked(model, LAYOUT, cache, CLOSING)
    questions = [q for q, _ in pairs]
    assert len(set(questions)) == len(questions) <= len(PARTS) * len(OPENINGS)
    assert len(questions) >= len(OPENINGS), "each opening gives at least one"
    assert {q.split()[0] for q in questions} == set(OPENINGS)
    assert pairs == self_asked(model, LAYOUT, cache, CLOSING)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Who came? He did. Why?", "Who came?"),
        ("Who came? Answer: Tom.", "Who came?"),
        ("Who came\nWhy?", "Who came"),
        ("Who ", "Who"),
        ("  Where is it?\n\nThere.", "Where is it?"),
    ],
)
def test_one_question_of_a_generated_text(text: str, question: str) -> None:
    assert one_question(text) == question


# A whole training.


class Reads:
    """Counts readings; stops the training at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> None:
        self.n, self.stop_at = 0, stop_at
        monkeypatch.setattr("heads.training.record", self)

    def __call__(self, *parts: Any) -> Any:
        if self.n == self.stop_at:
            raise KeyboardInterrupt
        self.n += 1
        return record(*parts)


def test_a_training_saves_heads_with_card_profile_and_cost(tmp_path: Path) -> None:
    model: Any = tiny_model()
    head, reports = trained(tmp_path)
    found = load_heads(tmp_path / "out.safetensors", model)
    assert found.name == "retaining" and head_digest(found.head) == head_digest(head)
    assert len(reports) == 2 and all(len(r.curves) == 2 for r in reports)
    assert found.profile is not None and found.profile.kept == PROFILE_KEPT
    assert "minutes of forward passes" in found.card.cost and "on cpu" in found.card.cost
    assert found.card.data == "three documents"
    assert found.card.settings["fitting"]["width"] == 4 and found.card.settings["rounds"] == 2
    assert json.loads(json.dumps(found.card.settings)) == found.card.settings
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 * 3 + 2 + 1


@pytest.mark.parametrize("stop_at", [0, 2, 4])
def test_a_training_that_was_cut_off_reads_nothing_twice(
    stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = trained(tmp_path / "once")
    reads = Reads(monkeypatch, stop_at)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut")
    reads.stop_at = None
    head, told = trained(tmp_path / "cut")
    assert reads.n == 6
    assert head_digest(head) == head_digest(expected)
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("it was fitted again"))
    _, reports = trained(tmp_path / "cut")
    assert reads.n == 6
    assert [r.curves for r in reports] == [r.curves for r in told] and len(reports) == 2


def test_a_fall_between_reading_and_fitting_costs_no_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)

    def say(text: str) -> None:
        if "layer 1/2" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, say=say)
    assert reads.n == 3 and not list(tmp_path.glob("heads-*"))
    trained(tmp_path)
    assert reads.n == 6


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def without_its_cost(path: Path) -> None:
    model: Any = tiny_model()
    found = load_heads(path, model)
    save_heads(path, found.head, replace(found.card, cost=""))


def without_its_curve(path: Path) -> None:
    path.with_suffix(".json").write_text('{"curves": 3}', encoding="utf-8")


@pytest.mark.parametrize("damage", [cut_short, without_its_cost, without_its_curve])
def test_a_fit_whose_file_is_damaged_is_made_again_from_the_same_readings(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    one = replace(SETTINGS, rounds=1)
    expected, told = trained(tmp_path, one)
    (fitted,) = tmp_path.glob("heads-*.safetensors")
    damage(fitted)
    said: list[str] = []
    head, reports = trained(tmp_path, one, say=said.append)
    assert head_digest(head) == head_digest(expected) and reads.n == 3
    assert [r.curves for r in reports] == [r.curves for r in told]
    (line,) = (line for line in said if fitted.name in line)
    assert "fitted again" in line
    said.clear()
    trained(tmp_path, one, say=said.append)
    assert not any("layer" in line or fitted.name in line for line in said), "it is whole again"


def test_another_process_waits_until_a_damaged_fit_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replace(SETTINGS, rounds=1)
    expected, _ = trained(tmp_path, one)
    (fitted,) = tmp_path.glob("heads-*.safetensors")
    whole, said = fitted.read_bytes(), []
    cut_short(fitted)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("heads.training.time.sleep", lambda _: fitted.write_bytes(whole))
    head, _ = trained(tmp_path, one, say=said.append)
    assert head_digest(head) == head_digest(expected) and said == []


def test_too_few_documents_to_hold_any_out_are_not_told_as_nan(tmp_path: Path) -> None:
    said: list[str] = []
    trained(tmp_path, replace(SETTINGS, rounds=1), say=said.append)
    assert any(line.strip().startswith("layer 1/2") for line in said)
    assert not any("nan" in line for line in said)


def test_other_fitting_uses_the_same_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    one = replace(SETTINGS, rounds=1)
    first, _ = trained(tmp_path, one)
    second, _ = trained(tmp_path, replace(one, fitting=replace(FIT, loss="rank")))
    third, _ = trained(tmp_path, replace(one, fitting=replace(FIT, seed=1)), start=first)
    assert reads.n == 3
    assert len({head_digest(h) for h in (first, second, third)}) == 3


def test_the_card_of_heads_that_go_on_tells_their_own_width(tmp_path: Path) -> None:
    model: Any = tiny_model()
    start = RetainingHead(model.geometry, 4).requires_grad_(False)
    wider = replace(SETTINGS, rounds=1, fitting=replace(SETTINGS.fitting, width=8))
    head, _ = trained(tmp_path, wider, start=start)
    assert isinstance(head, RetainingHead) and head.w1.shape[1] == 4
    card = load_heads(tmp_path / "out.safetensors", model).card
    assert card.settings["fitting"]["width"] == 4


def test_processes_share_the_reading_and_end_with_one_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heads.training._POLL_S", 0.01)
    monkeypatch.setattr("heads.training._n_processes", lambda: 2)
    own = threading.local()
    monkeypatch.setattr("heads.training._rank", lambda: own.rank)
    done: dict[int, Any] = {}
    read: dict[int, int] = {0: 0, 1: 0}

    def counting(*parts: Any) -> Any:
        read[own.rank] += 1
        return record(*parts)

    monkeypatch.setattr("heads.training.record", counting)

    def process(rank: int) -> None:
        own.rank = rank
        done[rank] = trained(tmp_path / "two")

    threads = [threading.Thread(target=process, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(done) == {0, 1} and read == {0: 4, 1: 2}
    assert len(done[0][1]) == 2
    assert [r.curves for r in done[1][1]] == [r.curves for r in done[0][1]]
    assert head_digest(done[0][0]) == head_digest(done[1][0])


def test_the_launchers_variables_say_which_process_this_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (training._rank(), training._n_processes()) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (training._rank(), training._n_processes()) == (3, 4)


def test_the_plan_counts_what_will_be_read(tmp_path: Path) -> None:
    model: Any = tiny_model()
    settings = replace(SETTINGS, recording=replace(READ, max_tokens=160))
    found = plan(model, LAYOUT, DOCUMENTS, settings, tmp_path)
    assert found.n_documents == 3 and found.n_tokens == (150 + 5) + 160 + 160
    assert found.forward_tokens >= 2 * found.n_tokens
    assert found.disk_bytes == 2 * found.n_tokens * 2 * 48 * 2
    assert found.seconds(10.0) == (found.forward_tokens + found.fit_tokens) / 10


def test_the_plan_counts_the_fit(tmp_path: Path) -> None:
    model: Any = tiny_model()

    def of(**changes: Any) -> int:
        fitting = replace(SETTINGS.fitting, **changes)
        return plan(
            model, LAYOUT, DOCUMENTS, replace(SETTINGS, fitting=fitting), tmp_path
        ).fit_tokens

    one = of(kind="retaining", epochs=1.0, width=64)
    assert one > 0 and of(kind="retaining", epochs=3.0, width=64) == pytest.approx(3 * one, abs=3)
    assert of(kind="retaining", epochs=1.0, width=128) == pytest.approx(2 * one, abs=3)
    assert of(kind="locret", epochs=1.0, width=64) > one
    none = replace(SETTINGS, rounds=0, answers=ANSWERS)
    assert plan(model, LAYOUT, DOCUMENTS, none, tmp_path).fit_tokens == 0


def test_one_document_is_too_few(tmp_path: Path) -> None:
    model: Any = tiny_model()
    with pytest.raises(InvalidSetting, match="at least two documents"):
        train(model, LAYOUT, DOCUMENTS[:1], SETTINGS, tmp_path, tmp_path / "o", CARD)


@pytest.mark.parametrize("label", ["cis", "questions"])
def test_a_label_of_questions_without_any_is_refused_before_anything_is_read(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "record", lambda *_, **__: pytest.fail("something was read"))
    short = replace(READ, max_tokens=100)
    settings = replace(SETTINGS, fitting=replace(FIT, label=label), recording=short)
    with pytest.raises(InvalidSetting, match="comes with questions"):
        trained(tmp_path, settings)


def test_questions_of_a_document_held_out_teach_no_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "record", lambda *_, **__: pytest.fail("something was read"))
    documents = [
        replace(document(60, n), questions=document(60, n).questions if is_held_out(n) else ())
        for n in range(HELD_EVERY)
    ]
    model: Any = tiny_model()
    settings = replace(SETTINGS, fitting=replace(FIT, label="questions"))
    with pytest.raises(InvalidSetting, match="not held out"):
        train(model, LAYOUT, documents, settings, tmp_path, tmp_path / "o", CARD)


def test_the_card_says_what_was_measured(tmp_path: Path) -> None:
    settings = replace(SETTINGS, fitting=replace(FIT, label="kvzip"), rounds=1)
    trained(tmp_path, settings)
    model: Any = tiny_model()
    card = load_heads(tmp_path / "out.safetensors", model).card
    assert card.settings["recording"]["kinds"] == ["kvzip"]


def test_locret_is_trained_on_its_own_label(tmp_path: Path) -> None:
    model: Any = tiny_model()
    trained(tmp_path, replace(SETTINGS, fitting=LOCRET, rounds=1))
    found = load_heads(tmp_path / "out.safetensors", model)
    assert found.name == "locret" and found.profile is None
    assert "cis" in KINDS


@pytest.mark.parametrize(("fitting", "allocation"), [(FIT, "global"), (LOCRET, "uniform")])
def test_heads_evict_on_policy_as_they_will_at_work(
    fitting: FitSettings, allocation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int | None, str]] = []

    def watched(model: Any, ids: Any, config: Any, scorer: Any, **how: Any) -> Any:
        seen.append((config.eviction.budget_tokens, config.eviction.allocation))
        return prefill(model, ids, config, scorer, **how)

    monkeypatch.setattr("heads.recordings.prefill", watched)
    trained(tmp_path, replace(SETTINGS, fitting=fitting))
    assert [how for budget, how in seen if budget is not None] == [allocation] * 3


@pytest.mark.parametrize(("fitting", "found"), [(FIT, True), (LOCRET, False)])
def test_readings_on_policy_by_another_rule_are_not_taken_for_those_of_today(
    fitting: FitSettings, found: bool, tmp_path: Path
) -> None:
    model: Any = tiny_model()
    settings = replace(SETTINGS, fitting=fitting)
    first, _ = trained(tmp_path, replace(settings, rounds=1))
    trained(tmp_path, settings)
    whole = replace(READ, kinds=kinds_for(fitting.label))
    pruned = replace(READ, kept=settings.kept, replay=False, kinds=())
    # Named as before the rule was a part of it, when every kind shared one budget.
    before = [
        recording_path(tmp_path, model, LAYOUT, DOCUMENTS[0], how, who).exists()
        for how, who in ((whole, ""), (pruned, head_digest(first)))
    ]
    assert before == [True, found]
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 * 3 + 2 + 1


def test_a_fit_that_was_there_counts_in_the_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model()
    trained(tmp_path)
    for path in tmp_path.glob("heads-*.safetensors"):
        found = load_heads(path, model)
        save_heads(path, found.head, replace(found.card, cost="300.0"))
    monkeypatch.setattr("heads.training.fit", None)
    trained(tmp_path)
    assert "10.0 of fitting" in load_heads(tmp_path / "out.safetensors", model).card.cost


def test_a_fit_by_an_older_recipe_is_not_taken_for_one_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    trained(tmp_path, replace(SETTINGS, rounds=1))
    monkeypatch.setattr("heads.training.FIT_VERSION", 99)
    _, reports = trained(tmp_path, replace(SETTINGS, rounds=1))
    assert len(reports) == 1 and reads.n == 3, "fitted anew, from the same recordings"


# Through answers.

ANSWERS = AnswerFitSettings(steps=3, questions=2)


def test_heads_are_fitted_through_answers_after_the_labels(tmp_path: Path) -> None:
    model: Any = tiny_model()
    said: list[str] = []
    by_label, _ = trained(tmp_path, replace(SETTINGS, rounds=1))
    head, reports = trained(tmp_path, replace(SETTINGS, rounds=1, answers=ANSWERS), say=said.append)
    found = load_heads(tmp_path / "out.safetensors", model)
    assert head_digest(head) != head_digest(by_label)
    *rounds, answers = reports
    assert len(rounds) == 1 and answers.curves[0][-1][0] == ANSWERS.steps
    assert all(nats > 0 for _, nats in answers.curves[0])
    assert found.allocation == "global", "one threshold is what it learnt"
    assert found.profile is not None and found.profile.kept == PROFILE_KEPT, "who asks can have it"
    assert found.card.label == "blend, then 3 steps through answers"
    assert "minutes through answers" in found.card.cost
    assert found.card.settings["answers"]["steps"] == 3
    assert any("6 questions of 3 documents" in line for line in said)
    assert any("step 3/3" in line for line in said)


def test_without_a_round_given_heads_go_on_through_answers_alone(tmp_path: Path) -> None:
    model: Any = tiny_model()
    start = RetainingHead(model.geometry, 4).requires_grad_(False)
    settings = replace(SETTINGS, rounds=0, answers=ANSWERS)
    head, reports = trained(tmp_path, settings, start=start)
    assert len(reports) == 1 and head_digest(head) != head_digest(start)
    read = [p for p in tmp_path.glob("*.safetensors") if not p.name.startswith(("out", "answers"))]
    assert len(read) == 3
    assert load_recording(read[0]).labels == {}, "nothing was measured that nobody needs"


def test_questions_of_documents_cut_short_or_held_out_teach_nothing(tmp_path: Path) -> None:
    paths = [tmp_path / str(n) for n in range(9)]
    documents = [document(20 + n, n) for n in range(9)]
    found = lessons_of(LAYOUT, documents, paths, 26).taught
    assert [lesson.recording.name for lesson in found] == ["0", "1", "2", "3"]
    tail, answer = found[0].asked[0]
    question = documents[0].questions[0]
    assert tail == [*CLOSING, *LAYOUT.tail(question.text)]
    assert answer == LAYOUT.tokenizer(question.answers[0])["input_ids"]
    everything = lessons_of(LAYOUT, documents, paths, 400)
    assert len(everything.taught) == 8
    assert [lesson.recording.name for lesson in everything.held_out] == ["7"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "nothing to save"),
        ({"rounds": 0, "answers": ANSWERS}, "nothing to save"),
        ({"answers": ANSWERS, "fitting": replace(FIT, kind="locret")}, "Locret's do not"),
        ({"answers": ANSWERS, "recording": replace(READ, max_tokens=100)}, "questions to answer"),
    ],
)
def test_what_answers_cannot_fit_is_refused_before_anything_is_read(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "record", lambda *_, **__: pytest.fail("something was read"))
    with pytest.raises(InvalidSetting, match=message):
        trained(tmp_path, replace(SETTINGS, **changes))


def test_the_plan_counts_the_steps_through_answers(tmp_path: Path) -> None:
    model: Any = tiny_model()
    without, with_steps = (
        plan(
            model, LAYOUT, DOCUMENTS, replace(SETTINGS, answers=replace(ANSWERS, steps=n)), tmp_path
        )
        for n in (0, 10)
    )
    assert with_steps.forward_tokens - without.forward_tokens == 20_000
    none = plan(model, LAYOUT, DOCUMENTS, replace(SETTINGS, rounds=0, answers=ANSWERS), tmp_path)
    assert none.disk_bytes == without.disk_bytes // 2
    assert none.memory_bytes > 2 * 48 * 97 * 4 * 4, "the logits of two answers, four times"


def test_the_plan_asks_no_room_for_what_was_read_before(tmp_path: Path) -> None:
    model: Any = tiny_model()
    settings = replace(SETTINGS, rounds=0, answers=ANSWERS)
    before = plan(model, LAYOUT, DOCUMENTS, settings, tmp_path)
    assert before.disk_bytes > 0
    trained(tmp_path, settings, start=RetainingHead(model.geometry, 4).requires_grad_(False))
    assert plan(model, LAYOUT, DOCUMENTS, settings, tmp_path).disk_bytes == 0
    labelled = plan(model, LAYOUT, DOCUMENTS, SETTINGS, tmp_path)
    assert labelled.disk_bytes == 2 * before.disk_bytes, "those were not measured by the label"


def test_what_documents_held_out_lose_is_said_and_on_the_card(tmp_path: Path) -> None:
    model: Any = tiny_model()
    documents = [document(60 + n, n) for n in range(9)]
    start = RetainingHead(model.geometry, 4).requires_grad_(False)
    settings = replace(SETTINGS, rounds=0, answers=replace(ANSWERS, lr=0.5))
    said: list[str] = []
    out = tmp_path / "out.safetensors"
    arguments = (model, LAYOUT, documents, settings, tmp_path, out, replace(CARD))
    train(*arguments, start=start, say=said.append)
    assert sum("1 documents held out" in line for line in said) == 3
    rows = load_heads(out, model).card.held_out
    assert [row["kept"] for row in rows] == [0.125, 0.0625, 0.03125]
    for row in rows:
        assert row["kl_before"] > 0 and row["kl"] > 0 and row["kl"] != row["kl_before"]
    trained(tmp_path / "few", settings, start=start)
    assert load_heads(tmp_path / "few" / "out.safetensors", model).card.held_out == []


def test_a_document_beyond_the_window_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    model: Any = tiny_model()
    window = model.geometry.window
    long = [document(window - 2047, 1), document(90, 2)]
    whole = replace(SETTINGS, recording=replace(READ, max_tokens=9999))
    with pytest.raises(InvalidSetting, match=f"window of {window}") as refused:
        plan(model, LAYOUT, long, whole, tmp_path)
    assert f"--max-tokens {window - 2048}" in refused.value.next_step
    cut = replace(SETTINGS, recording=replace(READ, max_tokens=window - 2048))
    assert plan(model, LAYOUT, long, cut, tmp_path).n_documents == 2


def test_no_documents_are_refused_in_words(tmp_path: Path) -> None:
    model: Any = tiny_model()
    settings = replace(SETTINGS, answers=ANSWERS)
    assert plan(model, LAYOUT, [], settings, tmp_path).n_tokens == 0
    with pytest.raises(InvalidSetting, match="at least two documents"):
        train(model, LAYOUT, [], settings, tmp_path, tmp_path / "out.safetensors", CARD)


def test_another_fit_through_answers_does_not_go_on_from_an_earlier_ones_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heads.answer_fit._KEPT_EVERY", 1)
    model: Any = tiny_model()
    start = RetainingHead(model.geometry, 4).requires_grad_(False)
    settings = replace(SETTINGS, rounds=0, answers=ANSWERS)
    for version, n_steps in ((1, 1), (1, 0), (2, 1)):
        monkeypatch.setattr("heads.answer_round.ANSWER_FIT_VERSION", version)
        said: list[str] = []
        trained(tmp_path, settings, start=start, say=said.append)
        assert sum("step 3/3" in line for line in said) == n_steps
    assert len(list(tmp_path.glob("answers-*.safetensors"))) == 2


def test_a_damaged_recording_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    save_recording(path, recorded())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ScorerUnavailable, match=r"r\.safetensors of a training cannot be read"):
        load_recording(path)


def test_a_model_does_not_ask_itself_where_nobody_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def asks(*_: Any) -> list[tuple[str, str]]:
        asked.append(1)
        return []

    monkeypatch.setattr("heads.recordings.self_asked", asks)
    model: Any = tiny_model()
    start = RetainingHead(model.geometry, 4).requires_grad_(False)
    settings = replace(
        SETTINGS, rounds=0, answers=ANSWERS, recording=replace(READ, ask_itself=True)
    )
    documents = [*DOCUMENTS, replace(document(120, 5), questions=())]
    out = tmp_path / "out.safetensors"
    train(model, LAYOUT, documents, settings, tmp_path, out, replace(CARD), start=start)
    assert asked == [] and out.exists()
    train(model, LAYOUT, documents, replace(settings, rounds=1), tmp_path, out, replace(CARD))
    assert asked == [1], "a label may come from what it asks"
