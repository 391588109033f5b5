"""A stored conversation as the chat shows it: text made harmless, page chips under each answer."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from app.desk.advice import advice, told
from app.desk.words import page_name
from app.records import JobView, MessageRecord

ChatMessage = dict[str, Any]

_NO_BREAK = "&#160;"

# Older turns stay in the library; the live component is sent whole at every update.
SHOWN_MESSAGES = 60

_CODE = re.compile(
    r"(^[ ]{0,3}(?P<fence>```+|~~~+)[^\n]*\n.*?(?:^[ ]{0,3}(?P=fence)[^\n]*$|\Z))"
    r"|((?<![\\`])(?P<ticks>`+)(?!`)[^\n]+?(?<!`)(?P=ticks)(?!`))",
    re.MULTILINE | re.DOTALL,
)


def harmless(text: str) -> str:
    """Text of a model or user as Markdown in which HTML, images and hidden link targets are text.

    A hostile document can make a model write anything. Tags are shown instead of obeyed, and a
    link shows its address instead of hiding it behind words. Code stays as it is.
    """
    pieces, at = [], 0
    for match in _CODE.finditer(text):
        pieces += [_escape(text[at : match.start()]), match.group()]
        at = match.end()
    return "".join([*pieces, _escape(text[at:])])


def _escape(text: str) -> str:
    # A square bracket that closes is what begins a link's hidden address, in all its forms.
    return re.sub(r"(?<!\\)\](?=[(\[:])", "&#93;", text.replace("&", "&amp;").replace("<", "&lt;"))


def chips(citations: Sequence[dict[str, Any]], page_kind: str, css: str) -> str:
    """Page chips and, folded away, the passages; `css` prefixes the class names.

    Verified and unverified differ in mark, words and border, not in colour alone.
    """
    if not citations:
        return ""
    shown: dict[tuple[int, bool], str] = {}
    for citation in citations:
        page, sure = int(citation["page"]), bool(citation["verified"])
        name = html.escape(page_name(page, str(citation.get("label", "")), page_kind))
        kind = f"{css} {css}-ok" if sure else f"{css} {css}-maybe"
        mark = "\u2713 " if sure else ""
        note = "" if sure else " \u00b7 not verified"
        shown.setdefault((page, sure), f'<span class="{kind}">{mark}{name}{note}</span>')
    passages = "".join(_passage(citation, page_kind) for citation in citations)
    row = " ".join(shown.values())
    return (
        f'<div class="{css}-row">{row}</div>'
        f'<details class="{css}-passages"><summary>What these pages say</summary>'
        f"<ul>{passages}</ul></details>"
    )


def _passage(citation: dict[str, Any], page_kind: str) -> str:
    name = page_name(int(citation["page"]), str(citation.get("label", "")), page_kind)
    quote = " ".join(str(citation.get("quote", "")).split())
    found = "found word for word" if citation["verified"] else "similar words"
    return f"<li><strong>{_inert(name)}</strong>, {found}: \u201c{_inert(quote)}\u201d</li>"


def _inert(text: str) -> str:
    """Escaped for HTML inside Markdown: no character left that either would act on."""
    return re.sub(r"[\\`*_\[\]()#~|$!:]", lambda m: f"&#{ord(m.group())};", html.escape(text))


def as_typed(text: str) -> str:
    """A question as Markdown that shows it letter for letter, in the lines it was typed in."""
    lines = []
    for line in text.splitlines():
        inert = re.sub(r"^[-+=]|(?<=\d)\.|(?<=www)\.|[@^]", _entities, _inert(line))
        lines.append(re.sub(r"^ +| (?= )|\t", lambda m: _NO_BREAK * len(m.group()), inert))
    return "<br>".join(lines)


def _entities(match: re.Match[str]) -> str:
    return "".join(f"&#{ord(letter)};" for letter in match.group())


def conversation(
    messages: Sequence[MessageRecord], job: JobView | None, page_kind: str, css: str
) -> list[ChatMessage]:
    """Messages for the chat component; a pending answer shows the text of its own job."""
    shown: list[ChatMessage] = []
    for message in messages[-SHOWN_MESSAGES:]:
        if message.role == "user":
            shown.append({"role": "user", "content": as_typed(message.text)})
            continue
        if message.state == "pending":
            own = job is not None and job.payload.get("answer_id") == message.id
            content = _pending(job if own else None, css)
        else:
            content = _answer(message, page_kind, css)
        shown.append({"role": "assistant", "content": content})
    return shown


def _pending(job: JobView | None, css: str) -> str:
    if job is None:
        return _note("Waiting for its turn, or interrupted when the program ended.", css)
    if job.text:
        return harmless(job.text)
    if job.state == "queued":
        return _note("Waiting until the work before it is done\u2026", css)
    return _note(html.escape(told(job.message) or "Thinking").rstrip(".") + "\u2026", css)


def _answer(message: MessageRecord, page_kind: str, css: str) -> str:
    parts = [harmless(message.text)] if message.text else []
    if message.state == "failed":
        problem = str(message.details.get("problem", "It failed."))
        error = str(message.details.get("error", ""))
        parts.append(_note(html.escape(advice(problem, error)), css))
    if message.state == "stopped":
        parts.append(_note("Stopped here.", css))
    parts.append(chips(message.citations, page_kind, css))
    if message.state == "done" and message.text and not message.citations:
        parts.append(_note("No page of the document was found for this answer.", css))
    speed = _speed(message.details)
    if speed:
        parts.append(_note(speed, css))
    return "\n\n".join(part for part in parts if part)


def _speed(details: dict[str, Any]) -> str:
    if not details.get("decode_tok_s") or details.get("ttft_s") is None:
        return ""
    return (
        f"First word after {details['ttft_s']:.1f} s \u00b7 "
        f"{details['decode_tok_s']:.0f} tokens per second"
    )


def _note(text: str, css: str) -> str:
    return f'<span class="{css}-note">{text}</span>'
