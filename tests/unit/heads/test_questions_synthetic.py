"""Made documents: the answer is there, at its depth, in a text of the length asked for."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heads.question_set import QuestionedDocument
from heads.questions import synthetic
from heads.questions.documents import estimate_tokens, make_questions
from heads.questions.errors import BadRequest, UnknownPart
from heads.questions.filler import facts_at_depths, sentence_ends

BOOK = (
    'It was late. "Who is there?" asked Mr. Brown, and nobody answered him for a while! The '
    "house of J. Smith stood empty since 1802, as people said.\n\nIt had no door. Why? "
)
SLOW_MACHINE = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
tasks = st.sampled_from(synthetic.TASKS)
lengths = st.integers(2048, 6000)
seeds = st.integers(0, 10**6)
books = st.sampled_from([None, BOOK])
WITH_NEEDLES = ("passkey", "single", "multikey", "multivalue", "tracking")


def only(
    task: str, tokens: int, seed: int, book: str | None = None, n: int | None = None
) -> QuestionedDocument:
    hidden_in = None if task in synthetic.WITHOUT_FILLER else book
    (made,) = synthetic.build(task, tokens, 1, n, seed, hidden_in)
    return made


@SLOW_MACHINE
@given(tasks, lengths, seeds, books)
def test_every_part_of_every_answer_is_in_the_text(
    task: str, tokens: int, seed: int, book: str | None
) -> None:
    document = only(task, tokens, seed, book)
    assert document.questions
    for question in document.questions:
        (answer,) = question.answers
        for part in answer.split(", "):
            assert re.search(rf"(?<![\w-]){re.escape(part)}(?![\w-])", document.text)


@SLOW_MACHINE
@given(tasks, lengths, seeds, books)
def test_the_length_is_met_within_five_percent(
    task: str, tokens: int, seed: int, book: str | None
) -> None:
    assert abs(estimate_tokens(only(task, tokens, seed, book).text) - tokens) <= 0.05 * tokens


@pytest.mark.parametrize("task", synthetic.TASKS)
def test_the_least_length_is_met_and_less_is_refused(task: str) -> None:
    least = synthetic.MIN_TOKENS_OF.get(task, synthetic.MIN_TOKENS)
    for seed in range(5):
        length = estimate_tokens(only(task, least, seed).text)
        assert abs(length - least) <= 0.05 * least
    with pytest.raises(BadRequest, match=f"tokens {least - 1} is below {least}"):
        only(task, least - 1, 0)


@SLOW_MACHINE
@given(st.sampled_from(WITH_NEEDLES), st.integers(3000, 20000), seeds)
def test_another_count_of_tokens_is_met_too(task: str, chars: int, seed: int) -> None:
    (made,) = synthetic.build(task, chars, 1, seed=seed, count=len)
    assert abs(len(made.text) - chars) <= 0.05 * chars


@SLOW_MACHINE
@given(tasks, lengths, seeds, books)
def test_a_seed_gives_the_same_text_and_another_seed_another(
    task: str, tokens: int, seed: int, book: str | None
) -> None:
    document = only(task, tokens, seed, book)
    assert document == only(task, tokens, seed, book)
    other = only(task, tokens, seed + 1, book)
    assert other.text != document.text
    assert {q.answers for q in other.questions}.isdisjoint(q.answers for q in document.questions)


@pytest.mark.parametrize("task", synthetic.TASKS)
def test_documents_of_one_set_differ_in_text_answers_and_name(task: str) -> None:
    made = synthetic.build(task, 2048, 6)
    answers = [q.answers for d in made for q in d.questions]
    assert len({d.text for d in made}) == len({d.name for d in made}) == 6
    assert len(set(answers)) == len(answers)


@pytest.mark.parametrize("task", synthetic.TASKS)
def test_more_documents_leave_the_first_ones_as_they_are(task: str) -> None:
    assert synthetic.build(task, 2048, 2) == synthetic.build(task, 2048, 4)[:2]


@SLOW_MACHINE
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=40), st.floats(0, 1), st.sampled_from(" \n")
)
def test_a_fact_sits_within_one_sentence_of_its_depth(
    sizes: list[int], depth: float, gap: str
) -> None:
    sentences = ["Word" + " word" * n + "." for n in sizes]
    text = gap.join(sentences)
    fact = "The fact is 17."
    result = facts_at_depths(text, [(depth, fact)])
    assert result.count(fact) == 1
    before, after = result.split(fact)
    assert abs(len(before) - depth * len(text)) <= max(map(len, sentences)) + 1
    # Nothing is lost, and no sentence is cut.
    assert (before + after).split() == text.split()
    assert not before.strip() or before.rstrip().endswith(".")
    assert not before or before[-1].isspace()


@SLOW_MACHINE
@given(lengths, st.integers(0, 5))
def test_a_needle_sits_within_one_sentence_of_its_depth(tokens: int, number: int) -> None:
    document = synthetic.build("single", tokens, number + 1)[number]
    needle = next(s for s in document.text.split(". ") if "special magic number" in s)
    filler = len(document.text) - len(needle) - 2
    longest = max(map(len, document.text.split(". "))) + 2
    wanted = (0.5 + number * 0.6180339887498949) % 1
    assert abs(document.text.index(needle) - wanted * filler) <= longest


def test_the_depths_of_a_set_cover_the_whole_text() -> None:
    depths = sorted(
        d.text.index("The special magic") / len(d.text) for d in synthetic.build("single", 1024, 20)
    )
    gaps = [b - a for a, b in zip([0.0, *depths], [*depths, 1.0], strict=True)]
    assert max(gaps) < 0.13


def test_facts_at_both_ends_and_in_order_at_one_place() -> None:
    text = "One here. Two here."
    assert facts_at_depths(text, [(0, "New.")]) == "New. One here. Two here."
    assert facts_at_depths(text, [(1, " New. ")]) == "One here. Two here. New."
    assert facts_at_depths("", [(0.5, "New.")]) == "New."
    both = facts_at_depths(text, [(0.5, "A."), (0.0, "C."), (0.5, "B.")])
    assert both == "C. One here. A. B. Two here."
    for depth in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadRequest, match=r"outside 0\.\.1"):
            facts_at_depths(text, [(depth, "New.")])


def test_a_sentence_does_not_end_at_a_title_an_initial_or_a_number() -> None:
    text = 'He saw Mr. Brown. "Why?" J. Smith paid 3.50 in all. Then i.e. never mind.'
    ends = sentence_ends(text)
    assert [text[a:b] for a, b in pairwise(ends)] == [
        "He saw Mr. Brown. ",
        '"Why?" ',
        "J. Smith paid 3.50 in all. ",
        "Then i.e. never mind.",
    ]


def test_pairs_are_one_json_object_and_each_answer_its_value() -> None:
    document = only("pairs", 2048, 1, n=7)
    records = json.loads(document.text.removeprefix("JSON data:\n"))
    assert len(document.questions) == 7
    for question in document.questions:
        assert question.answers == (records[question.text.split('"')[1]],)
    with pytest.raises(BadRequest, match="only 30 pairs fit"):
        only("pairs", 2048, 1, n=31)


def test_a_key_asked_for_has_one_value_and_others_mislead() -> None:
    document = only("multikey", 2048, 1, n=3)
    found = re.findall(r"The special magic number for ([\w-]+) is: (\d+)\.", document.text)
    assert len(dict(found)) == len(found) == synthetic.N_NEEDLES
    for question in document.questions:
        name = re.search(r"number for ([\w-]+) ", question.text)
        assert name and question.answers == (dict(found)[name[1]],)


def test_all_values_of_a_key_are_the_answer_in_the_order_of_the_text() -> None:
    document = only("multivalue", 2048, 1)
    for question in document.questions:
        name = re.search(r"numbers for ([\w-]+) ", question.text)
        assert name
        values = re.findall(rf"One of the .* for {name[1]} is: (\d+)\.", _lines(document))
        assert len(values) == synthetic.N_VALUES
        assert question.answers == (", ".join(values),)


def test_a_chain_of_variables_is_followed_to_its_end() -> None:
    document = only("tracking", 2048, 1, n=3)
    value_of: dict[str, str] = {}
    for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", document.text):
        value_of[name] = value_of.get(source, source)
    assert len(value_of) == 3 * (synthetic.N_HOPS + 1)
    for question in document.questions:
        value = next(v for v in value_of.values() if v in question.text)
        assert question.answers[0].split(", ") == [n for n, v in value_of.items() if v == value]


@pytest.mark.parametrize("tokens", [1024, 4096, 65536])
def test_the_common_words_are_the_most_common(tokens: int) -> None:
    document = only("common", tokens, 1)
    counts = Counter(line.split(". ")[1] for line in document.text.splitlines())
    ranked = counts.most_common()
    common = {word for word, _ in ranked[: synthetic.N_COMMON]}
    assert set(document.questions[0].answers[0].split(", ")) == common
    assert ranked[synthetic.N_COMMON - 1][1] == 10 * ranked[synthetic.N_COMMON][1]
    assert len(ranked) >= 2 * synthetic.N_COMMON


def test_a_book_fills_up_and_starts_elsewhere_each_time() -> None:
    sentences = "".join(f"Sentence number {i} of the book. " for i in range(200))
    made = synthetic.build("single", 1024, 5, book=sentences)
    starts = {re.search(r"Sentence number \d+", d.text)[0] for d in made}  # type: ignore[index]
    assert len(starts) == 5
    assert not any("crossroads" in d.text for d in made)
    with pytest.raises(BadRequest, match="empty"):
        synthetic.build("single", 1024, book=" \n")


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(UnknownPart, match=r"'needles'.*pairs, passkey, single"):
        synthetic.build("needles")
    with pytest.raises(BadRequest, match="no room for 200 facts"):
        only("multikey", 2048, 0, n=200)
    with pytest.raises(BadRequest, match="documents 0 is below 1"):
        synthetic.build("single", n_documents=0)
    for task in ("passkey", "single", "common"):
        with pytest.raises(BadRequest, match=f"{task} has one question a document"):
            synthetic.build(task, per_document=2)
    for task in ("pairs", "common"):
        with pytest.raises(BadRequest, match=f"{task} hides nothing in a text"):
            synthetic.build(task, book="A sentence. Another one.")


def test_a_question_without_an_answer_goes() -> None:
    assert make_questions([("Q?", [" "]), (" ", ["a"]), ("R?", [])]) == ()


def _lines(document: QuestionedDocument) -> str:
    return document.text.replace(". ", ".\n")
