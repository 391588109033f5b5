"""One question put to one open session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from app.answers import Answer, TokenText
from app.library import Library
from app.open_session import OpenSession
from app.prompts import Turn
from app.sharing import both

if TYPE_CHECKING:
    from engine.decoding import Decoder
    from engine.generate import Sampling


def answer(
    session: OpenSession,
    library: Library,
    question: str,
    sampling: Sampling | None,
    *,
    decoder: Decoder,
    on_token: Callable[[], None],
    on_text: Callable[[str], None] | None,
    stop: Callable[[], bool] | None,
    history: Sequence[Turn],
    history_tokens: int,
) -> Answer:
    """Answer from a view of the frozen cache, drafting from the document's own tokens, and cite.

    on_token, on_text  called for every token; with every new piece of the text
    history            earlier turns, of which the latest fit into history_tokens are told
    """
    from engine.generate import Sampling, generate
    from engine.speculation import Drafter

    layout = session.layout
    turns = layout.fitting_history(history, history_tokens) if history_tokens else []
    tail = layout.tail(question, turns)
    text = TokenText(session.model.tokenizer, on_text)
    made = generate(
        session.model,
        session.cache.view(),
        tail,
        sampling or Sampling(),
        on_token=both(text.add, on_token),
        stop=stop,
        decoder=decoder,
        drafter=Drafter(session.cache.token_ids, tail),
    )
    answer_text = text.finish()
    citations = session.witness(library).cite(answer_text, question)
    return Answer(
        question=question,
        text=answer_text,
        citations=citations,
        ttft_s=made.ttft_s,
        decode_tok_s=made.decode_tok_s,
        new_tokens=len(made.token_ids),
        prefilled_tokens=made.prefilled_tokens,
        reused_tokens=made.reused_tokens,
        finish=made.finish,
        forwards=made.forwards,
    )
