"""The desk's own pieces of HTML: plan, progress, headings, notices. Everything is escaped here."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from app.desk.advice import told
from app.desk.words import count, duration, size, stretch
from app.progress import STAGE_NAMES
from app.records import SESSION_READY, JobView, SessionRecord

NOT_RUNNING = {
    "queued": "Waiting until the work before it is done.",
}


def heading(title: str, line: str = "", level: int = 2) -> str:
    """A heading with a quiet line under it."""
    below = f'<p class="lr-line">{html.escape(line)}</p>' if line else ""
    return f'<h{level} class="lr-title">{html.escape(title)}</h{level}>{below}'


def notice(text: str, kind: str = "error") -> str:
    """One sentence that a screen reader announces; kind: "error" or "info"."""
    if not text:
        return ""
    role = "alert" if kind == "error" else "status"
    return f'<div class="lr-notice lr-{kind}" role="{role}">{html.escape(text)}</div>'


def plan_card(plan: dict[str, Any]) -> str:
    """What reading will cost, before it begins; warnings below."""
    kind = plan["page_kind"]
    pages = f"{plan['n_pages']:,}"
    if (plan["first_page"], plan["last_page"]) != (1, plan["n_pages"]):
        pages = f"{plan['first_page']}\u2013{plan['last_page']} of {plan['n_pages']:,}"
    seconds = plan["seconds"]
    share = plan["kept_tokens"] / max(1, plan["n_tokens"])
    kept = "every token" if share >= 0.999 else f"the best {plan['kept_tokens']:,} per head"
    begun = f"{plan['begun_tokens']:,} read before" if plan["begun_tokens"] else ""
    guess = seconds is not None and plan.get("guessed", False)
    once = "a guess: nothing like it was read here yet" if guess else "once, never again"
    facts = [
        (f"{kind.capitalize()}s", pages, ""),
        ("Tokens", f"{plan['n_tokens']:,}", begun or f"at most {plan['limit_tokens']:,}"),
        ("Time to read", "unknown" if seconds is None else duration(seconds), once),
        ("Memory", size(plan["memory_bytes"]), f"{size(plan['available_memory_bytes'])} free"),
        ("Kept in memory", size(plan["cache_bytes"]), kept),
        ("Room on the disk", size(plan["disk_bytes"]), f"{size(plan['free_disk_bytes'])} free"),
    ]
    cells = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}"
        f"<small>{html.escape(note)}</small></dd></div>"
        for name, value, note in facts
    )
    return (
        f"{heading(plan['title'] or 'Untitled', 'To be read by ' + plan['model'])}"
        f'<dl class="lr-facts">{cells}</dl>{_warnings(plan)}'
    )


def _warnings(plan: dict[str, Any]) -> str:
    lines = [*plan_problems(plan), *map(str, plan["warnings"])]
    if plan["lowered"]:
        lines.insert(0, str(plan["lowered"]))
    if plan["already_read"] and not plan.get("damage"):
        lines.insert(0, "This has been read before: it opens at once.")
    return warning_list(lines, most=6)


def warning_list(lines: Sequence[str], most: int) -> str:
    """The first `most` warnings and how many more there are; nothing if there are none."""
    if not lines:
        return ""
    shown = list(lines[:most])
    if len(lines) > len(shown):
        shown.append(f"And {count(len(lines) - len(shown), 'more warning')}.")
    items = "".join(f"<li>{html.escape(line)}</li>" for line in shown)
    return f'<ul class="lr-warnings" role="status">{items}</ul>'


def plan_problems(plan: dict[str, Any]) -> list[str]:
    """Why the reading cannot begin as planned, each with its next step; empty if it can."""
    problems = []
    if plan["n_tokens"] > plan["limit_tokens"]:
        fitting = plan["fitting_pages"]
        kind = plan["page_kind"]
        step = (
            f"{kind.capitalize()}s {fitting[0]} to {fitting[1]} fit and are filled in below: "
            "count again."
            if fitting
            else "Split the document into smaller files."
        )
        problems.append(
            f"Too long: {plan['n_tokens']:,} tokens, and at most "
            f"{plan['limit_tokens']:,} can be read. {step}"
        )
    if plan.get("damage"):  # plans of before have none
        problems.append(f"This has been read before. {plan['damage']}")
    if plan["memory_bytes"] > plan["available_memory_bytes"]:
        problems.append("Not enough free memory. Close other programs, or choose fewer pages.")
    if plan["disk_bytes"] > plan["free_disk_bytes"]:
        problems.append("Not enough room on the disk. Free some space, or delete sessions.")
    return problems


def progress_card(job: JobView, title: str) -> str:
    """How far a reading (or what comes before it) is, as a bar and in words."""
    share = min(1.0, job.done / job.total) if job.total > 0 else 0.0
    words = progress_words(job)
    known = job.total > 0 and job.state == "running"
    value = f'aria-valuenow="{share * 100:.0f}"' if known else ""
    fill = "lr-fill" if known else "lr-fill lr-unknown"
    stage, _, announced = job.message.partition(". ")
    stage = stage.rstrip(". ") or "Working"
    below = told(announced)
    return (
        f"{heading(title, NOT_RUNNING.get(job.state, stage))}"
        f'<div class="lr-bar" role="progressbar" aria-label="{html.escape(stage)}" '
        f'aria-valuemin="0" aria-valuemax="100" {value} aria-valuetext="{html.escape(words)}">'
        f'<div class="{fill}" style="width:{share * 100 if known else 100:.1f}%"></div></div>'
        f'<p class="lr-progress">{html.escape(words)}</p>'
        + (f'<p class="lr-line">{html.escape(below)}</p>' if below else "")
    )


def progress_words(job: JobView) -> str:
    """`12,288 of 40,960 tokens, 30 % - 950 tokens per second - about 30 seconds left`."""
    if job.state == "queued":
        return "Waiting"
    if job.total <= 0:
        return "One moment"
    share = f"{100 * job.done / job.total:.0f}\u00a0%"
    if job.message.startswith(STAGE_NAMES["fetch"]):  # in bytes
        return f"{size(job.done)} of {size(job.total)} \u00b7 {share}"
    parts = [f"{job.done:,} of {job.total:,} tokens", share]
    if job.tok_s > 0:
        parts.append(f"{job.tok_s:,.0f} tokens per second")
    if job.eta_s is not None and job.done < job.total:
        parts.append(f"{duration(job.eta_s)} left")
    return " \u00b7 ".join(parts)


def reading_strip(job: JobView, title: str) -> str:
    """The running reading in two short lines, for the side of the page."""
    share = f"{100 * job.done / job.total:.0f}\u00a0%" if job.total > 0 else "beginning"
    return f'<p class="lr-strip"><span>Reading</span> {html.escape(title)} \u00b7 {share}</p>'


def session_heading(record: SessionRecord, doubts: Sequence[str] = ()) -> str:
    """Title of an open session, what is remembered of it, and why to doubt what was read."""
    parts = [stretch(record), count(record.n_tokens, "token")]
    if record.state == SESSION_READY:
        parts += [f"{record.kept_fraction:.0%} kept", f"{size(record.nbytes)} in memory"]
    parts.append(record.model)
    title = heading(record.title or record.file_name or "Untitled", " \u00b7 ".join(parts))
    return title + warning_list(doubts, most=3)


def footer(version: str) -> str:
    """Version, licence and where the source is; a link to our own page only."""
    return (
        '<footer class="lr-footer"><span>Everything stays on this machine.</span>'
        f"<span>Longread {html.escape(version)} \u00b7 free software, GNU AGPL 3 or later, "
        '<a href="/source" target="_blank" rel="noopener">Source</a></span></footer>'
    )
