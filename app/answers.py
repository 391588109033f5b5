"""An answer, and its text as it grows out of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from app.citations import Citation

_UNFINISHED = "\ufffd"  # what a tokenizer shows for bytes whose character is not complete


@dataclass(frozen=True)
class Answer:
    """What a question got. ttft_s: from prompt to first token; finish: "eos", "length", "stop".

    forwards   the model's passes after the prompt: fewer than new_tokens where it quoted
    packing_s  of answer_s, until the weights that answer were packed: once for a loaded model
    """

    question: str
    text: str
    citations: list[Citation]
    ttft_s: float
    decode_tok_s: float
    new_tokens: int
    prefilled_tokens: int
    reused_tokens: int
    finish: str
    answer_s: float = 0.0
    packing_s: float = 0.0
    forwards: int = 0
    looked_back_pages: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: one entry of `answers` in the JSON of `ask`."""
        return {
            "question": self.question,
            "text": self.text,
            "citations": [citation.to_dict() for citation in self.citations],
            "looked_back_pages": self.looked_back_pages,
            "ttft_s": round(self.ttft_s, 4),
            "decode_tok_s": round(self.decode_tok_s, 3),
            "new_tokens": self.new_tokens,
            "prefilled_tokens": self.prefilled_tokens,
            "reused_tokens": self.reused_tokens,
            "finish": self.finish,
            "forwards": self.forwards,
            "answer_s": round(self.answer_s, 4),
            "packing_s": round(self.packing_s, 4),
        }


class TokenText:
    """Decodes an answer while it is made; a character is shown once all its bytes are there."""

    # Decoding starts this many tokens back, so that spacing and characters come out whole.
    CONTEXT = 8

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None] | None = None) -> None:
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._ids: list[int] = []
        self._shown_ids = 0  # tokens whose text is final
        self._shown = ""

    def add(self, token_id: int) -> None:
        """Take one token; pass on the text that became certain."""
        self._ids.append(token_id)
        first = max(0, self._shown_ids - self.CONTEXT)
        before = self._decode(self._ids[first : self._shown_ids])
        after = self._decode(self._ids[first:])
        if after.endswith(_UNFINISHED) or len(after) <= len(before):
            return
        piece = after[len(before) :]
        self._shown_ids = len(self._ids)
        self._shown += piece
        if self._on_text is not None:
            self._on_text(piece)

    def finish(self) -> str:
        """The whole text, blanks at its ends left out."""
        return self._decode(self._ids).strip()

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
