"""A job's refusal in the desk's own words: its cause, and a next step that a window can offer.

The worker's sentences also serve the command line and may name its flags; those go.
"""

from __future__ import annotations

import re

from app.records import JobView

PASSWORD_ERRORS = ("PasswordRequired", "WrongPassword")

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_FLAG = re.compile(r"(^|\s)--[a-z]|`")
_WHOLE = {
    "PrefillStopped": "The reading was stopped. What has been read is kept: continue at any time.",
    "OpeningStopped": "Opening the document was stopped.",
}
_NEXT_STEP = {
    "PasswordRequired": "Type its password and open it again.",
    "WrongPassword": "Check it and try again.",
    "DocumentTooLong": "Choose fewer pages.",
    "DocumentTooLarge": "Split it, and read the parts.",
    "NotEnoughMemory": "Close other programs, or choose fewer pages.",
    "NotEnoughDisk": "Free some space, or delete sessions you no longer need.",
    "SnapshotCorrupt": "Delete the session and read the document again.",
    "SnapshotMismatch": "Delete the session and read the document again.",
    "UnsupportedDocument": "Convert it to PDF, EPUB, text or Markdown.",
    "DocumentMissing": "Choose the file again.",
}


def advice(message: str, error: str = "") -> str:
    """The message without command-line flags, ending in a next step if it had none left."""
    if error in _WHOLE:
        return _WHOLE[error]
    sentences = _SENTENCE.split(message.strip())
    kept = _without_flags(sentences)
    text = " ".join(kept)
    step = _NEXT_STEP.get(error, "")
    if step and step not in text and (len(kept) < 2 or len(kept) < len(sentences)):
        text = f"{text} {step}".strip()
    return text or "Something went wrong. The log in the data directory says what."


def told(text: str) -> str:
    """What the reader announced, without sentences that name flags; may be nothing."""
    return " ".join(_without_flags(_SENTENCE.split(text.strip())))


def _without_flags(sentences: list[str]) -> list[str]:
    return [sentence for sentence in sentences if not _FLAG.search(sentence)]


def needs_password(job: JobView) -> bool:
    """Whether a job failed because the document is locked."""
    return job.state == "failed" and job.result.get("error") in PASSWORD_ERRORS


def job_advice(job: JobView) -> str:
    """The sentence to show for a job that ended without doing its work."""
    return advice(job.message, str(job.result.get("error", "")))


def is_calm(text: str) -> bool:
    """Whether a sentence reports what the user asked for, and no trouble."""
    return text in _WHOLE.values()
