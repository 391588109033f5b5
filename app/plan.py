"""What reading a document will cost, said before it begins; and the refusals that follow."""

from __future__ import annotations

import shutil
from bisect import bisect_left
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.desk import words
from app.errors import BadPageRange, DocumentTooLong
from app.memory import available_bytes
from app.paths import DataPaths
from app.settings import MAX_DOCUMENT_TOKENS
from app.speeds import known_speed

if TYPE_CHECKING:
    from app.reading import Job
    from ingest import Document

MIB = 2**20
# Beside each cached entry's keys and values: its position (int32) and score (fp32).
_ENTRY_OVERHEAD_BYTES = 8
_DISK_MARGIN_BYTES = 64 * MIB
# Of the measured matrix speed that a whole reading reaches, about; only until the first reading.
LINEAR_SHARE = 0.5


@dataclass(frozen=True)
class Plan:
    """Cost of one reading. Bytes are estimates from the model's geometry; seconds follow the last
    reading of the same kind on this machine (app.speeds), before that the measured speed of its
    processor (None if that is unknown).

    guessed        no reading of the same kind tells the seconds
    begun_tokens   of them that an earlier attempt has read; the seconds are those of the others
    fits           within the token limit, free memory and free disk
    fitting_pages  the longest page range from first_page on that is within the token limit
    lowered        a sentence if the model's window holds fewer entries than the budget; or nothing
    damage         why what was saved of it cannot be opened, if it has been read, and what helps
    """

    title: str
    sha256: str
    kind: str
    page_kind: str
    session_id: str
    n_pages: int
    first_page: int
    last_page: int
    n_tokens: int
    limit_tokens: int
    budget_tokens: int
    kept_tokens: int
    cache_bytes: int
    memory_bytes: int
    available_memory_bytes: int
    disk_bytes: int
    free_disk_bytes: int
    seconds: float | None
    model: str
    fitting_pages: tuple[int, int] | None
    already_read: bool
    begun_tokens: int = 0
    guessed: bool = False
    lowered: str = ""
    damage: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the reading can begin."""
        return (
            self.n_tokens <= self.limit_tokens
            and self.memory_bytes <= self.available_memory_bytes
            and self.disk_bytes <= self.free_disk_bytes
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `fits` included."""
        return {**asdict(self), "fits": self.fits}


def page_range(document: Document, pages: tuple[int, int] | None) -> tuple[int, int]:
    """The pages to read, all by default. Raises BadPageRange."""
    n_pages = len(document.pages)
    first, last = pages or (1, n_pages)
    if not 1 <= first <= last <= n_pages:
        raise BadPageRange(
            f"Pages {first}-{last} do not lie inside the document, which has {n_pages}.",
            f"Choose a range within 1-{n_pages}.",
        )
    start, end = document.pages[first - 1].start, document.pages[last - 1].end
    if not document.text[start:end].strip():
        raise BadPageRange(f"Pages {first}-{last} hold no text.", "Choose other pages.")
    return first, last


def make_plan(job: Job, paths: DataPaths) -> Plan:
    """Count and estimate; a card that has read nothing of this kind has no seconds."""
    budget = job.settings.budget_tokens or 0
    n_read = len(job.prefix.token_ids)
    kept = min(n_read, budget) if budget else n_read
    ceiling = _ceiling(job)
    lowered = ceiling is not None and kept > ceiling
    if ceiling is not None:
        kept = min(kept, ceiling)
    held = _held_while_reading(job, n_read, kept)
    geometry = job.model.geometry
    value_bytes = _value_bytes(job)
    entry_bytes = geometry.kv_bytes_per_token(value_bytes)
    entry_bytes += geometry.n_slots * _ENTRY_OVERHEAD_BYTES
    known = known_speed(paths, job)
    rate = known or _estimated_rate(job, held, paths)
    passes = 2 if job.settings.read_twice else 1
    begun = _begun_tokens(job, paths)
    return Plan(
        title=job.document.title,
        sha256=job.document.sha256,
        kind=job.document.kind,
        page_kind=job.document.page_kind,
        session_id=job.session_id,
        n_pages=len(job.document.pages),
        first_page=job.pages[0],
        last_page=job.pages[1],
        n_tokens=job.prefix.n_document,
        limit_tokens=MAX_DOCUMENT_TOKENS,
        budget_tokens=budget,
        kept_tokens=kept,
        cache_bytes=kept * entry_bytes,
        memory_bytes=_working_bytes(job, held) + _choosing_bytes(job, kept * entry_bytes),
        available_memory_bytes=available_bytes(job.model.device),
        # The snapshot, and a checkpoint that lies beside it until the reading ends; a checkpoint
        # of what a second reading will choose from is written beside the one before it.
        disk_bytes=2 * held * entry_bytes + _DISK_MARGIN_BYTES,
        free_disk_bytes=shutil.disk_usage(paths.root).free,
        seconds=(passes * n_read - begun) / rate if rate else None,
        model=job.model.name,
        fitting_pages=_fitting_pages(job),
        already_read=paths.snapshot(job.session_id).exists(),
        begun_tokens=begun,
        guessed=known is None,
        lowered=_lowered(job, kept) if lowered else "",
        damage=_damage(paths.snapshot(job.session_id)),
        warnings=tuple(warning.message for warning in job.document.warnings),
    )


def _damage(snapshot: Path) -> str:
    """Why a saved session cannot be opened, by its files alone, and what helps; or nothing."""
    from engine.errors import SnapshotCorrupt, SnapshotMismatch
    from engine.snapshot import check_files

    if not snapshot.exists():
        return ""
    try:
        check_files(snapshot)
    except SnapshotMismatch as error:
        return f"{error.cause} A later Longread may have saved it: use that, or delete the session."
    except SnapshotCorrupt as error:
        return f"{error.cause} Delete that session, and it can be read again."
    return ""


def _begun_tokens(job: Job, paths: DataPaths) -> int:
    """Tokens of the document that an earlier attempt's checkpoint has read; 0 without one."""
    from engine import manifest
    from engine.errors import SnapshotError

    partial = paths.partial(job.session_id)
    if not partial.exists():
        return 0
    try:
        return max(int(manifest.read(partial)["n_seen"]) - job.prefix.n_header, 0)
    except SnapshotError:
        return 0  # which is said when it is to be taken up


def _ceiling(job: Job) -> int | None:
    """Most entries a head that the model's window holds; None where they stand at their places."""
    from engine.eviction import compact_ceiling

    window, n_read = job.model.geometry.window, len(job.prefix.token_ids)
    if job.config.eviction.resolve_positions(n_read, window) == "original":
        return None
    return compact_ceiling(window, job.settings.chunk_tokens)


def _lowered(job: Job, kept: int) -> str:
    return (
        f"Of so long a document the model's window of {job.model.geometry.window} tokens holds "
        f"{kept} entries a head beside a question, in place of {job.settings.budget_tokens}."
    )


def check_length(plan: Plan) -> None:
    """Raise DocumentTooLong, with the page range that fits, if there are too many tokens."""
    if plan.n_tokens <= plan.limit_tokens:
        return
    cause = f"The document has {plan.n_tokens} tokens; at most {plan.limit_tokens} can be read."
    if plan.fitting_pages is None:
        raise DocumentTooLong(cause, "Split the document into smaller files.", None)
    first, last = plan.fitting_pages
    raise DocumentTooLong(
        cause,
        f"{plan.page_kind.capitalize()}s {first}-{last} of {plan.n_pages} fit: "
        f"add --pages {first}-{last}.",
        plan.fitting_pages,
    )


def check_fits(plan: Plan) -> None:
    """Raise NotEnoughMemory or NotEnoughDisk, with figures, before anything is computed."""
    from engine.errors import NotEnoughDisk, NotEnoughMemory

    if plan.memory_bytes > plan.available_memory_bytes:
        raise NotEnoughMemory(
            f"Reading needs about {plan.memory_bytes / MIB:.0f} MiB of memory beside the model, "
            f"and {plan.available_memory_bytes / MIB:.0f} MiB are free.",
            "Choose a smaller --budget, --chunk or model, or close other programs.",
        )
    if plan.disk_bytes > plan.free_disk_bytes:
        raise NotEnoughDisk(
            f"Reading needs about {plan.disk_bytes / MIB:.0f} MiB on the disk, "
            f"and {plan.free_disk_bytes / MIB:.0f} MiB are free.",
            "Free some space, choose a smaller --budget, or delete sessions with `delete`.",
        )


def cost_line(plan: Plan) -> str:
    """What a reading that begins will take, in one sentence."""
    time = "" if plan.seconds is None else f", about {_about(plan.seconds)}"
    if time and plan.guessed:
        time += " (a guess: nothing as long was read here in this way yet)"
    left = plan.n_tokens - plan.begun_tokens
    if not plan.begun_tokens:
        what = f"To be read: {plan.n_tokens:,} tokens"
    elif left > 0:
        what = f"To be read: the last {left:,} of {plan.n_tokens:,} tokens"
    else:
        what = f"To be read for the second time: {plan.n_tokens:,} tokens"
    return (
        f"{what}, about {words.size(plan.cache_bytes)} kept in memory and on the disk "
        f"({words.size(plan.disk_bytes)} to be free there){time}."
    )


def _about(seconds: float) -> str:
    """A time no more exact than an estimate can be."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _held_while_reading(job: Job, n_read: int, kept: int) -> int:
    """Entries per layer and head before the last choice is made."""
    if not job.settings.read_twice:
        return kept
    from heads.second_reading import first_budget

    return min(n_read, first_budget(kept))


def _choosing_bytes(job: Job, chosen_bytes: int) -> int:
    """A second reading's own: what is chosen beside what it is chosen from, and fp32 matrices."""
    if not job.settings.read_twice:
        return 0
    geometry = job.model.geometry
    if job.settings.refit:
        from engine.refit import references_nbytes
        from heads.second_reading import N_NOTED

        chosen_bytes += references_nbytes(geometry, N_NOTED)
    return chosen_bytes + 4 * geometry.n_layers * geometry.n_q_heads * geometry.head_dim**2


def _working_bytes(job: Job, kept: int) -> int:
    """Memory beside the loaded model: the cache, its readable copy, and one chunk's work."""
    from engine.memory import readable_nbytes, terms, total

    geometry, compute_bytes = job.model.geometry, job.model.compute_dtype.itemsize
    parts = terms(
        geometry,
        0,
        kept,
        min(_tokens_at_once(job), len(job.prefix.token_ids)),
        kv_bytes_per_value=_value_bytes(job),
        compute_bytes=compute_bytes,
        in_tiles=job.model.device == "cpu",
    )
    parts["overhead"] = 0  # the libraries are loaded already
    parts["readable"] = readable_nbytes(geometry, kept, compute_bytes)
    if job.settings.refit and not job.settings.read_twice:
        from engine.refit import N_REFERENCES, references_nbytes

        parts["references"] = references_nbytes(geometry, N_REFERENCES)
    return total(parts)


def _value_bytes(job: Job) -> float:
    """Mean bytes of a kept key's or value's number; the newest tokens' few 16 bits not counted."""
    fine = job.config.storage_dtype(job.model.compute_dtype).itemsize
    return job.config.quant.bytes_per_value(job.model.geometry.head_dim, fine)


def _tokens_at_once(job: Job) -> int:
    """Most document tokens of one forward pass."""
    if not job.settings.read_twice:
        return job.settings.chunk_tokens
    from heads.second_reading import PIECE_TOKENS

    return max(job.settings.chunk_tokens, PIECE_TOKENS)


def _estimated_rate(job: Job, kept: int, paths: DataPaths) -> float | None:
    """Tokens per second to expect of a model that has read nothing here yet; None on a GPU."""
    from engine.numeric import CACHE_NAME, pick_format
    from engine.trunk import LONG_TEXT_TOKENS
    from engine.weights import linear_parameters

    if job.model.device != "cpu":
        return None
    choice = pick_format(paths.models / CACHE_NAME)
    name = "fp32" if job.model.compute_dtype.itemsize == 4 else "bf16"
    packed = job.model.reads_packed and len(job.prefix.token_ids) >= LONG_TEXT_TOKENS
    gflops = choice.gflops["prefill_fp16" if packed else f"prefill_{name}"]
    geometry = job.model.geometry
    visible = kept + job.settings.chunk_tokens // 2
    attention = 2 * geometry.n_layers * geometry.n_q_heads * geometry.head_dim * visible
    flops = 2 * (linear_parameters(geometry) + attention)
    return LINEAR_SHARE * gflops * 1e9 / flops


def _fitting_pages(job: Job) -> tuple[int, int] | None:
    """The longest range of whole pages from the first one on that is within the token limit."""
    prefix, (first, last) = job.prefix, job.pages
    if prefix.n_document <= MAX_DOCUMENT_TOKENS:
        return job.pages
    fitting = None
    for number in range(first, last + 1):
        end = job.document.pages[number - 1].end
        if bisect_left(prefix.char_starts, end) > MAX_DOCUMENT_TOKENS:
            break
        fitting = (first, number)
    return fitting
