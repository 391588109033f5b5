"""A citation is only as sure as the text it stands on."""

from __future__ import annotations

import pytest

from app.citations import MAX_CITATIONS, Citation, Witness
from ingest.document import Document
from tests.unit.app.made_documents import document_of

PAGES = (
    "Once upon a time an old king lived in a castle by the sea. He had three sons and no "
    "daughter.\n",
    "The youngest son rode into the dark forest, where he met a grey wolf. The wolf said: Take the "
    "left path, and do not look back!\n",
    "On the third morning the prince found the golden bird asleep in its cage. He paid 1,200 "
    "crowns for the cage. The inn-\nkeeper of the Red Lion had warned him.\n",
    "At the end of the day the king gave half of the kingdom to the prince.\n",
)


@pytest.fixture
def book() -> Document:
    return document_of(*PAGES, labels=["i", "ii", "1", "2"])


def normal(text: str) -> str:
    return " ".join(text.split())


def test_a_run_of_the_documents_words_is_verified_with_its_page_and_label(book: Document) -> None:
    (citation,) = Witness(book).cite(
        "He found the golden bird asleep in its cage.", "What did the prince find?"
    )
    assert citation == Citation(
        3, "1", "On the third morning the prince found the golden bird asleep in its cage.", True
    )


def test_every_quote_stands_in_the_document_on_its_page(book: Document) -> None:
    answer = (
        "The old king had three sons and no daughter. The youngest met a grey wolf. "
        'The wolf told him to "take the left path". He paid 1,200 crowns for the cage.'
    )
    citations = Witness(book).cite(answer, "Tell the story.")
    assert {c.page for c in citations} == {1, 2, 3}
    for citation in citations:
        page = book.pages[citation.page - 1]
        assert citation.quote in book.text[page.start : page.end]


def test_line_breaks_and_hyphens_of_the_print_do_not_hide_a_match(book: Document) -> None:
    (citation,) = Witness(book).cite("The innkeeper of the Red Lion had warned the prince.")
    assert citation.verified and citation.page == 3
    assert "inn-\nkeeper" in citation.quote


def test_a_passage_in_quotation_marks_is_verified_even_if_short(book: Document) -> None:
    (citation,) = Witness(book).cite("\u201cgrey wolf\u201d", "Whom did the youngest son meet?")
    assert citation.verified and citation.page == 2


def test_a_quotation_that_the_document_does_not_hold_is_not_verified(book: Document) -> None:
    answer = 'The wolf said "go home to your father".'
    assert all(not citation.verified for citation in Witness(book).cite(answer))


def test_one_quoted_word_is_verified_only_if_one_page_has_it(book: Document) -> None:
    witness = Witness(book)
    (unique,) = witness.cite('"sea"', "Where was the castle?")
    assert unique.verified and unique.page == 1
    common = witness.cite('"prince"', "Who was it?")
    assert [citation.verified for citation in common] == [False]


def test_an_echo_of_the_question_is_not_evidence(book: Document) -> None:
    question = "Why did the youngest son ride into the dark forest?"
    answer = "The youngest son rode into the dark forest for unknowable reasons."
    assert not any(c.verified for c in Witness(book).cite(answer, question + " rode"))


def test_little_words_do_not_make_an_echo_longer() -> None:
    """A story's title and what follows it, beside a question about the letter."""
    text = (
        "The reader is referred to the story of the Scarlet Letter; and it should be kept in mind."
    )
    book = document_of(text + "\n", "Her name was Pearl, and she was three years old.\n")
    question = "What letter does Hester wear, and what is her daughter's name?"
    found = Witness(book).cite("Hester wears a scarlet letter, and it is dark red.", question)
    assert not any(citation.verified for citation in found)
    (named,) = Witness(book).cite("Her name was Pearl.", question)
    assert named.verified and named.page == 2
    (two,) = Witness(book).cite("One is referred to the story.", question)
    assert two.verified  # two words that the question did not bring


def test_four_small_words_are_not_evidence(book: Document) -> None:
    assert Witness(book).cite("At the end of the table.") == []


def test_a_short_answer_is_cited_but_not_as_verified(book: Document) -> None:
    (citation,) = Witness(book).cite("A wolf.", "Whom did the youngest son meet in the forest?")
    assert not citation.verified
    assert citation.page == 2 and "wolf" in citation.quote


def test_words_in_another_order_are_weak_evidence(book: Document) -> None:
    (citation,) = Witness(book).cite("The kingdom: half of it was given away by the king.")
    assert (citation.page, citation.verified) == (4, False)


@pytest.mark.parametrize(
    "answer",
    ["", "   ", "...", "The document does not say.", "Photosynthesis needs chlorophyll.", "Yes."],
)
def test_nothing_found_gives_no_citation(book: Document, answer: str) -> None:
    assert Witness(book).cite(answer, "What is it about?") == []


def test_pages_that_were_not_read_are_never_cited(book: Document) -> None:
    answer = "He found the golden bird asleep in its cage."
    assert Witness(book, (1, 2)).cite(answer) == []
    (citation,) = Witness(book, (3, 3)).cite(answer)
    assert citation.page == 3


def test_of_equal_runs_the_one_in_fitting_company_is_cited() -> None:
    book = document_of(
        "The lamp was lit. The keeper climbed the narrow stone stairs of the tower.\n",
        "Anna was late. The keeper climbed the narrow stone stairs and found Anna weeping.\n",
        "The keeper climbed the narrow stone stairs no more.\n",
    )
    (citation, *_) = Witness(book).cite(
        "The keeper climbed the narrow stone stairs.", "Where was Anna weeping?"
    )
    assert citation.page == 2


def test_a_run_across_a_page_break_is_cited_where_it_begins() -> None:
    book = document_of("Far away the silver ship left\n", "the quiet harbour at dawn.\n")
    (citation,) = Witness(book).cite("The silver ship left the quiet harbour at dawn.")
    assert citation.verified and citation.page == 1
    assert citation.quote == "Far away the silver ship left"


@pytest.mark.parametrize(
    ("first", "second", "quote"),
    [
        (
            "On page one we only hear of a house. The\n",
            "silver ship left the quiet harbour at dawn.\n",
            "silver ship left the quiet harbour at dawn.",
        ),
        (
            "We hear of something else. The silver ship left the quiet harbour at\n",
            "dawn. Nothing was heard of it.\n",
            "The silver ship left the quiet harbour at",
        ),
    ],
)
def test_a_run_across_a_page_break_is_cited_where_most_of_it_stands(
    first: str, second: str, quote: str
) -> None:
    book = document_of(first, second)
    (citation,) = Witness(book).cite("The silver ship left the quiet harbour at dawn.")
    page = 1 if quote in first else 2
    assert citation == Citation(page, str(page), quote, True)


def test_a_run_over_three_pages_is_cited_from_the_one_between() -> None:
    book = document_of("Then the\n", "silver ship left the quiet harbour\n", "at dawn. The end.\n")
    (citation,) = Witness(book).cite("The silver ship left the quiet harbour at dawn.")
    assert citation == Citation(2, "2", "silver ship left the quiet harbour", True)


def test_a_word_that_itself_runs_over_the_page_break_is_cited() -> None:
    (citation,) = Witness(document_of("a king", "dom\n")).cite('"kingdom"')
    assert citation == Citation(1, "1", "a king", True)


def test_long_sentences_are_cut_around_the_find() -> None:
    filler = "and so on and so forth with many little things " * 40
    book = document_of(filler + "the crimson key opened the hidden door " + filler)
    (citation,) = Witness(book).cite("The crimson key opened the hidden door.")
    assert citation.verified and len(citation.quote) < 400
    assert "crimson key opened the hidden door" in citation.quote
    assert citation.quote in book.text


def test_unspaced_scripts_need_eight_characters() -> None:
    book = document_of(
        "\u8a71\u8aaa\u5929\u4e0b\u5927\u52e2\uff0c\u5206\u4e45\u5fc5\u5408\uff0c\u5408\u4e45\u5fc5\u5206\u3002\n"
    )
    (citation,) = Witness(book).cite("\u5929\u4e0b\u5927\u52e2\uff0c\u5206\u4e45\u5fc5\u5408")
    assert citation.verified
    assert not any(c.verified for c in Witness(book).cite("\u5929\u4e0b\u5927\u52e2"))


def test_candidates_come_from_the_page_search(book: Document) -> None:
    asked: list[str] = []

    def search(query: str, limit: int) -> list[int]:
        asked.append(query)
        return [2]

    (citation,) = Witness(book, None, search).cite("A wolf.", "Whom did the youngest son meet?")
    assert citation.page == 2
    assert all('"wolf"' in query for query in asked) and asked


def test_there_are_never_too_many() -> None:
    lines = [
        f"The {n}th traveller carried the number {n * 7919} on a copper plate.\n" for n in range(20)
    ]
    answer = " ".join(line.strip() for line in lines)
    assert len(Witness(document_of(*lines)).cite(answer)) == MAX_CITATIONS


def test_markdown_around_the_words_does_not_matter(book: Document) -> None:
    answer = "- **The youngest son** rode into the *dark* forest\n- he met a _grey wolf_"
    citations = Witness(book).cite(answer, "What happened?")
    assert citations[0].verified and citations[0].page == 2
    assert normal(citations[0].quote).startswith("The youngest son rode")


# What the passage must hold beside the run

TREATY = (
    "The treaty between France and Spain was signed in Paris on 9 June 1815 by the king.\n",
    "The youngest son did not pay the innkeeper any of the crowns. No man knew of it.\n",
    "He paid 1,200 crowns for the old cage. It is not true, said the wolf, that the cage was "
    "made of gold; the golden bird sat in a cage of wood.\n",
    "The man who had come from far lived in the mill, and did not speak to the miller.\n",
)


def verdicts(answer: str, question: str = "", pages: tuple[str, ...] = TREATY) -> list[bool]:
    return [citation.verified for citation in Witness(document_of(*pages)).cite(answer, question)]


@pytest.mark.parametrize(
    "answer",
    [
        "The treaty between France and Spain was signed in Paris on 9 June 1715.",
        "The treaty between France and Spain was signed in Paris on 3 June 1815 by the king.",
        "On 9 June of 9 years the treaty between France and Spain was signed in Paris.",
        "The treaty between three kings of France and Spain was signed in Paris.",
        "In 1815 the youngest son did not pay the innkeeper any of the crowns.",
    ],
)
def test_a_number_that_the_passage_does_not_hold_is_not_verified(answer: str) -> None:
    assert verdicts(answer) == [False]


def test_a_number_of_the_question_must_stand_in_the_passage_too() -> None:
    answer = "The treaty between France and Spain was signed in 1715."
    assert verdicts(answer, "Was the treaty signed in 1715?") == [False]


@pytest.mark.parametrize(
    "answer",
    [
        "The youngest son did pay the innkeeper any of the crowns.",
        "The treaty between France and Spain was not signed in Paris.",
        "The treaty between France and Spain was never signed in Paris by the king.",
        "The treaty between France and Spain wasn't signed in Paris by the king.",
        "The cage was made of gold, said the wolf.",
    ],
)
def test_a_negation_added_taken_away_or_moved_is_not_verified(answer: str) -> None:
    assert verdicts(answer) == [False]


@pytest.mark.parametrize(
    "answer",
    [
        "The youngest son didn't pay the innkeeper any of the crowns.",
        "No, the youngest son did not pay the innkeeper any of the crowns.",
        "The golden bird sat in a cage of wood.",
        "The man who had come from far lived in the mill.",
        "The treaty was signed in Paris on 9 June 1815 by the king.",
    ],
)
def test_negations_and_numbers_that_agree_are_verified(answer: str) -> None:
    assert verdicts(answer) == [True]


def test_a_negation_of_another_language_that_was_taken_away_is_not_verified() -> None:
    pages = ("Der K\u00f6nig hat den Vertrag mit Spanien nicht in Paris unterschrieben.\n",)
    assert verdicts(
        "Der K\u00f6nig hat den Vertrag mit Spanien in Paris unterschrieben.", "", pages
    ) == [False]


@pytest.mark.parametrize(
    "answer",
    [
        "The treaty between France and Spain was signed in London.",
        "The treaty between France and Spain ended a long and bitter war over the colonies.",
    ],
)
def test_a_run_does_not_verify_a_sentence_that_says_something_else(answer: str) -> None:
    assert verdicts(answer, "Where was it signed?") == [False]


def test_words_of_the_question_may_stand_beside_the_passage(book: Document) -> None:
    question = "What did the prince pay for the golden bird's cage?"
    (true,) = Witness(book).cite("The prince paid 1,200 crowns for the cage.", question)
    assert true.verified and true.page == 3
    question = "What did the prince pay for the horse?"
    found = Witness(book).cite("The prince paid 1,200 crowns for the horse.", question)
    assert [citation.verified for citation in found] == [False]


@pytest.mark.parametrize(
    "answer",
    [
        "The topic is the numerical model that computes the resonances of the instrument.",
        "According to the passage, the numerical model computes the resonances of the instrument.",
    ],
)
def test_words_about_the_text_need_not_stand_in_it(answer: str) -> None:
    pages = ("Section 2 has the numerical model that computes the resonances of the instrument.\n",)
    (citation,) = Witness(document_of(*pages)).cite(answer, "What is the topic?")
    assert citation.verified
    other = answer.replace("resonances of the instrument", "weight of the instrument")
    assert not any(c.verified for c in Witness(document_of(*pages)).cite(other, "What is it?"))


def test_of_runs_the_one_whose_passage_agrees_is_cited() -> None:
    pages = (
        "In 1736 the silver ship left the quiet harbour at dawn with the captain.\n",
        "In 1743 the silver ship left the quiet harbour at dusk.\n",
    )
    (citation,) = Witness(document_of(*pages)).cite(
        "The silver ship left the quiet harbour in 1743.", "When did the captain leave at dawn?"
    )
    assert citation.verified and citation.page == 2


def test_a_quotation_does_not_verify_the_number_beside_it(book: Document) -> None:
    (citation,) = Witness(book).cite('In 1743 he found the "golden bird".')
    assert not citation.verified and citation.page == 3


def test_a_quotation_does_not_verify_what_is_denied(book: Document) -> None:
    (citation,) = Witness(book).cite('He never met a "grey wolf".', "Whom did he meet?")
    assert not citation.verified and citation.page == 2
    assert verdicts('"the innkeeper"', "Whom did the youngest son pay?") == [False]


@pytest.mark.parametrize(
    ("page", "answer"),
    [
        ("The city had 1.5 million inhabitants in 1900.", "15 million inhabitants in 1900"),
        ("A share costs 12.00 dollars at the door.", "1,200 dollars at the door, a share costs"),
        ("The paint takes 5-7 days to dry.", "The paint takes 57 days to dry."),
        ("It rises 2.5% a year in every province.", "It rises 25% a year in every province."),
        ("A litre of blood held 10^5 cells in it.", "A litre of blood held 10 cells in it."),
        ("The balance is -300 euros today.", "The balance is 300 euros today."),
    ],
)
def test_points_signs_and_dashes_make_another_number(page: str, answer: str) -> None:
    assert verdicts(answer, "", (page + "\n",)) == [False]
    assert verdicts(page, "", (page + "\n",)) == [True]


# Quotation marks

MARKS = (
    "The tower stood for years by the river. It was wide and high.\n",
    "The mark meant able. A grey wolf came; \u7070\u8272\u7684\u72fc\u6765\u4e86\u3002\n",
)


@pytest.mark.parametrize(
    "answer",
    [
        'The letter "A" stood for "able".',
        "The letter \u201cA\u201d stood for \u201cable\u201d.",
        'A board 5" was wide and 10" stood for "able".',
    ],
)
def test_what_stands_between_two_quotations_is_no_quotation(answer: str) -> None:
    (citation,) = Witness(document_of(*MARKS)).cite(answer)
    assert citation.page == 2


def test_marks_of_inches_enclose_nothing() -> None:
    assert not any(verdicts('It measures 5" by 10"x12" was wide" and high.', "", MARKS))


@pytest.mark.parametrize(
    "marks", ["\u00bb\u00ab", "\u00ab\u00bb", "\u201e\u201c", "\u201c\u201d", '""']
)
def test_quotation_marks_of_other_languages(marks: str) -> None:
    assert verdicts(f"Es war {marks[0]}grey wolf{marks[1]}.", "", MARKS) == [True]


@pytest.mark.parametrize("marks", ["\u300c\u300d", "\u300e\u300f", "\u201c\u201d", '""'])
def test_quotations_begin_within_unspaced_text(marks: str) -> None:
    assert verdicts(f"\u6765\u4e86{marks[0]}\u7070\u8272{marks[1]}", "", MARKS) == [True]


def test_a_quotation_that_repeats_the_question_is_not_verified() -> None:
    pages = ("The Red Lion is an inn of old Anna.\n",)
    answer = 'The document says nothing about who owns the "Red Lion".'
    assert not any(verdicts(answer, 'Who owns the "Red Lion"?', pages))
    answer = 'The "Red Lion" has one.'
    assert verdicts(answer, 'Who owns the "Red Lion"?', pages) == [False]
    assert verdicts(answer, "Which inn is there?", pages) == [True]


# Answers of several sentences

TALE = (
    "The king had three sons and no daughter at all.\n",
    "The youngest son rode into the dark forest alone.\n",
    "The prince found the golden bird asleep in its cage.\n",
)


@pytest.mark.parametrize(
    "marks", ["- - -", "* * *", "\u2022 \u2022 \u2022", "1. 2. 3.", "1) 2) 3)", "(1) (2) (3)"]
)
def test_items_of_a_list_are_cited_one_by_one(marks: str) -> None:
    items = (
        "The king had three sons and no daughter",
        "The youngest son rode into the dark forest",
        "The prince found the golden bird asleep",
    )
    lines = [f"{mark} {item}" for mark, item in zip(marks.split(), items, strict=True)]
    citations = Witness(document_of(*TALE)).cite("\n".join(lines))
    assert [(c.page, c.verified) for c in citations] == [(1, True), (2, True), (3, True)]


@pytest.mark.parametrize(
    "pages",
    [
        (
            "第一天，国王住在海边的城堡里。",
            "最小的儿子骑马走进黑暗的森林！",
            "王子发现金鸟在笼子里睡着了」。",
        ),
        (
            "राजा के तीन बेटे थे और कोई बेटी थी।",
            "सबसे छोटा बेटा अंधेरे जंगल में चला गया।",
        ),
        (
            "كان للملك ثلاثة أبناء وابنة واحدة؟",
            "ركب الابن الأصغر إلى الغابة المظلمة وحده۔",
        ),
    ],
    ids=["Chinese", "Hindi", "Arabic"],
)
@pytest.mark.parametrize("between", ["", " "])
def test_sentences_of_other_scripts_are_cited_one_by_one(
    pages: tuple[str, ...], between: str
) -> None:
    book = document_of(*(page + "\n" for page in pages))
    citations = Witness(book).cite(between.join(pages))
    assert [(c.page, c.verified) for c in citations] == [(n + 1, True) for n in range(len(pages))]


@pytest.mark.parametrize(
    ("page", "answer"),
    [
        ("यह विश्वविद्यालय बंद है।", "विश्वविद्यालय खुला।"),
        ("தமிழ்நாடு பெரியது.", "தமிழ்நாடு."),
        ("בְּרֵאשִׁית בָּרָא.", "בְּרֵאשִׁית."),
        (
            "उसने दिन में पानी पिया और काम किया।",
            "उसने दान में पुनी पोया और कम कया।",
        ),
    ],
    ids=["Hindi", "Tamil", "Hebrew", "Hindi, other vowels"],
)
def test_one_word_with_signs_is_no_run(page: str, answer: str) -> None:
    assert not any(verdicts(answer, "", (page + "\n",)))


def test_a_negation_of_hindi_that_was_taken_away_is_not_verified() -> None:
    page = "राजा ने किले का दरवाजा नहीं खोला।"
    assert verdicts(page, "", (page + "\n",)) == [True]
    assert verdicts(page.replace("नहीं ", ""), "", (page + "\n",)) == [False]
