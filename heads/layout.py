"""What this room asks of the prompt's layout; app.prompts.Layout and its Prefix are one."""

from __future__ import annotations

from typing import Any, Protocol


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text as a reader sees it: names of control tokens in it are letters."""
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return list(encoded["input_ids"])


class Prefix(Protocol):
    """A document laid out for a model: what is read once, before any question."""

    @property
    def token_ids(self) -> list[int]:
        """Header, document and closing."""
        ...

    @property
    def n_header(self) -> int:
        """Tokens before the document."""
        ...

    @property
    def n_document(self) -> int:
        """Tokens of the document itself."""
        ...


class Layout(Protocol):
    """How documents and questions are laid out for a model."""

    tokenizer: Any

    def prefix(self, text: str) -> Prefix:
        """A document's tokens, read once."""
        ...

    def tail(self, question: str) -> list[int]:
        """A question's tokens, up to where the answer begins."""
        ...
