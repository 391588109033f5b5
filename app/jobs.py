"""The job table: what the worker was asked to do and how far it came."""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

import psutil

from app.database import ThreadDatabase
from app.library import now
from app.records import JOB_ACTIVE, JobView

KEPT_ENDED_JOBS = 200


def owner_of_this_process() -> str:
    """Names this process so that another run, even with the same process id, differs."""
    return f"{os.getpid()}:{psutil.Process().create_time():.2f}"


def owner_is_alive(owner: str) -> bool:
    """Whether the process that took a job still runs."""
    pid, _, created = owner.partition(":")
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" == created
    except (psutil.NoSuchProcess, psutil.AccessDenied, ValueError):
        return False


class JobStore:
    """Persisted jobs; every method is one short transaction."""

    def __init__(self, database: ThreadDatabase) -> None:
        self.database = database
        self.owner = owner_of_this_process()

    def add(self, kind: str, payload: dict[str, Any], session_id: str | None = None) -> str:
        """Store a new job as queued; the payload holds no password and no question."""
        job_id = uuid.uuid4().hex[:16]
        self.database.get().table("jobs").insert(
            {
                "id": job_id,
                "kind": kind,
                "state": "queued",
                "session": session_id,
                "payload": json.dumps(payload),
                "owner": self.owner,
                "created_at": now(),
                "updated_at": now(),
            }
        )
        return job_id

    def update(self, job_id: str, **values: Any) -> None:
        """Write columns of one job; a dict given as `result` is stored as JSON."""
        if "result" in values:
            values["result"] = json.dumps(values["result"])
        self.database.get().table("jobs").update(job_id, {**values, "updated_at": now()})

    def get(self, job_id: str) -> JobView | None:
        """One job as last written, or None."""
        for row in self.database.get().query("SELECT * FROM jobs WHERE id = ?", [job_id]):
            return JobView.from_row(row)
        return None

    def all(self, *, active: bool = False) -> list[JobView]:
        """Jobs, newest first; only those that wait or run if `active`."""
        where = f"WHERE state IN {JOB_ACTIVE!r}" if active else ""
        rows = self.database.get().query(f"SELECT * FROM jobs {where} ORDER BY created_at DESC")
        return [JobView.from_row(row) for row in rows]

    def interrupt_orphans(self) -> list[str]:
        """Mark jobs as interrupted whose program no longer runs; returns their ids."""
        db = self.database.get()
        marked = []
        rows = list(db.query(f"SELECT id, owner FROM jobs WHERE state IN {JOB_ACTIVE!r}"))
        for row in rows:
            if not owner_is_alive(row["owner"]):
                self.update(
                    row["id"],
                    state="interrupted",
                    message="The program ended while this was running. Start it again to go on.",
                )
                marked.append(row["id"])
        db.execute(
            """DELETE FROM jobs WHERE state NOT IN ('queued', 'running') AND id NOT IN
               (SELECT id FROM jobs ORDER BY created_at DESC LIMIT ?)""",
            [KEPT_ENDED_JOBS],
        )
        return marked
