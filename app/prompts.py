"""How a document and a question are laid out in the model's own chat template.

    prefix = header + document + closing        read once, kept in the session's cache
    tail   = [earlier turns] + question + ending   appended for each question

The template is rendered once with markers in place of the texts and cut at the markers; each piece
is tokenised by itself, so that the prefix never depends on the question. Text of the document and
of the question never yields a special token, whatever it contains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingest import Document

LAYOUT_VERSION = "2"

SYSTEM = (
    "You answer questions about a document. Use only what the document says, in its own words, "
    "and be brief. If the document does not say it, say so."
)
OPENING = "Document:\n\n"
CLOSING = "\n\nEnd of the document.\n\n"
ASK = "Question: {question}\nAnswer the question from the document."

# Private-use characters: no template trims, escapes or interprets them.
_DOCUMENT = "\ue000D\ue001"
_CUT = "\ue000C\ue001"
# Some templates print the date of the day or leave room to think; a saved prefix must not change.
_TEMPLATE_ARGUMENTS = {"date_string": "01 Jan 2026", "enable_thinking": False}


@dataclass(frozen=True)
class Turn:
    """An earlier question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Prefix:
    """A tokenised document in its layout.

    token_ids       header, document and closing
    n_header        tokens before the document
    n_document      tokens of the document itself
    char_starts     for each document token, where it begins in Document.text, ascending
    """

    token_ids: list[int]
    n_header: int
    n_document: int
    char_starts: list[int]


class Layout:
    """The prompt layout of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._system_role = _accepts_system(tokenizer)
        rendered = self._render([], f"{_CUT}")
        header, _, rest = rendered.partition(_DOCUMENT)
        self.header_text = header
        self._closing_text = rest.partition(_CUT)[0]

    def header_ids(self) -> list[int]:
        """Everything before the document: system prompt and opening of the user turn."""
        return self._template_ids(self.header_text)

    def prefix(self, text: str, start: int = 0, end: int | None = None) -> Prefix:
        """Lay out text[start:end]; character offsets count from the beginning of text."""
        header = self.header_ids()
        ids, starts = self.document_ids(text, start, end)
        closing = self._template_ids(self._closing_text)
        return Prefix([*header, *ids, *closing], len(header), len(ids), starts)

    def prefix_of(self, document: Document, pages: tuple[int, int]) -> Prefix:
        """The prefix of these pages, first and last."""
        first, last = (document.pages[number - 1] for number in pages)
        return self.prefix(document.text, first.start, last.end)

    def document_ids(
        self, text: str, start: int = 0, end: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Token ids of text[start:end] and the character each begins at; no special tokens."""
        encoded = self.tokenizer(
            text[start:end],
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return list(encoded["input_ids"]), [start + s for s, _ in encoded["offset_mapping"]]

    def tail(self, question: str, history: Sequence[Turn] = ()) -> list[int]:
        """Tokens to append for a question: earlier turns, the question, the answer's opening."""
        rendered = self._render(history, _CUT)
        prefix = f"{self.header_text}{_DOCUMENT}{self._closing_text}"
        if not rendered.startswith(prefix):
            # A template that rewrites earlier turns would need the document read again.
            return self.tail(_with_history(question, history))
        texts: list[str] = []
        for turn in history:
            texts += [ASK.format(question=turn.question), turn.answer]
        texts.append(ASK.format(question=question))
        pieces = rendered[len(prefix) :].split(_CUT)
        assert len(pieces) == len(texts) + 1, "the template repeats or drops a message"
        ids = self._template_ids(pieces[0])
        for text, piece in zip(texts, pieces[1:], strict=True):
            ids += self._plain_ids(text) + self._template_ids(piece)
        return ids

    def fitting_history(self, turns: Sequence[Turn], max_tokens: int) -> list[Turn]:
        """The latest turns that fit into max_tokens, oldest first."""
        kept: list[Turn] = []
        room = max_tokens
        for turn in reversed(turns):
            room -= len(self._plain_ids(ASK.format(question=turn.question) + turn.answer)) + 16
            if room < 0:
                break
            kept.insert(0, turn)
        return kept

    def _render(self, history: Sequence[Turn], question: str) -> str:
        """The conversation as text, with a marker for the document and for every text."""
        opening = f"{OPENING}{_DOCUMENT}{CLOSING}"
        messages: list[dict[str, str]] = []
        if self._system_role:
            messages.append({"role": "system", "content": SYSTEM})
        else:
            opening = f"{SYSTEM}\n\n{opening}"
        for _ in history:
            messages.append({"role": "user", "content": opening + _CUT})
            messages.append({"role": "assistant", "content": _CUT})
            opening = ""
        messages.append({"role": "user", "content": opening + question})
        return _rendered(self.tokenizer, messages)

    def _template_ids(self, text: str) -> list[int]:
        """Token ids of the template's own text, in which special tokens count."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _plain_ids(self, text: str) -> list[int]:
        """Token ids of somebody's text, in which nothing is special."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Messages through the model's template; plain paragraphs for a model that has none."""
    if not tokenizer.chat_template:
        names = {"system": "", "user": "", "assistant": "Answer: "}
        parts = [names[message["role"]] + message["content"] for message in messages]
        return "\n\n".join(parts) + "\nAnswer:"
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **_TEMPLATE_ARGUMENTS
    )
    assert isinstance(text, str)
    return text


def _accepts_system(tokenizer: Any) -> bool:
    """Whether the template prints a system message before the user's turn."""
    from jinja2 import TemplateError

    probe = [{"role": "system", "content": _CUT}, {"role": "user", "content": _DOCUMENT}]
    try:
        text = _rendered(tokenizer, probe)
    except TemplateError:
        return False  # Gemma and early Mistral templates raise for this role
    return 0 <= text.find(_CUT) < text.find(_DOCUMENT)


def _with_history(question: str, history: Sequence[Turn]) -> str:
    """Earlier turns as part of the question's text."""
    lines = [f"Earlier question: {t.question}\nEarlier answer: {t.answer}" for t in history]
    return "\n".join([*lines, question])
