"""llama.cpp on the stand: run by its own Python, which has llama-cpp-python and nothing of ours.

Standard library and llama_cpp only. One JSON object a line on stdin, one reply a line on stdout
(see app.benchmarks.children). Requests, by "do":

hello   -> version
open    path, n_ctx, threads, flash_attn, n_batch -> n_vocab; replaces a model opened before
tokens  text -> ids
read    ids, start: the next tokens after the first `start` -> marks [[tokens read, seconds], ...]
decode  n: that many greedy tokens after what was read; the next read forgets them -> seconds
state   -> bytes of the saved state
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO


class Stand:
    """The open model and how to ask it. Keys and values are f16, llama.cpp's default."""

    def __init__(self, library: Any, replies: TextIO) -> None:
        self.library = library
        self.replies = replies
        self.model: Any = None

    def hello(self) -> dict[str, Any]:
        """The version of the binding."""
        return {"version": self.library.__version__}

    def open(
        self, path: str, n_ctx: int, threads: int, flash_attn: bool, n_batch: int
    ) -> dict[str, Any]:
        """Load a GGUF file with a context of n_ctx tokens."""
        if self.model is not None:
            self.model.close()
        self.model = self.library.Llama(
            model_path=path,
            n_ctx=n_ctx,
            n_threads=threads,
            n_threads_batch=threads,
            n_batch=n_batch,
            n_ubatch=n_batch,
            flash_attn=flash_attn,
            n_gpu_layers=0,
            verbose=False,
        )
        return {"n_vocab": self.model.n_vocab()}

    def tokens(self, text: str) -> dict[str, Any]:
        """Token ids of a text, nothing added and nothing in it special."""
        return {"ids": self.model.tokenize(text.encode("utf-8"), add_bos=False, special=False)}

    def read(self, ids: list[int], start: int) -> dict[str, Any]:
        """Read ids after the first `start` tokens; seconds after each batch, counted from here."""
        self.model.n_tokens = start
        step = self.model.n_batch
        marks = []
        started = time.perf_counter()
        for first in range(0, len(ids), step):
            self.model.eval(ids[first : first + step])
            done = min(first + step, len(ids))
            marks.append([start + done, time.perf_counter() - started])
            self.reply({"progress": [done, len(ids)]})
        return {"marks": marks}

    def decode(self, n: int) -> dict[str, Any]:
        """Seconds for n greedy tokens, the first one's own choice not counted."""
        token = self.model.sample(temp=0.0)
        started = time.perf_counter()
        for _ in range(n):
            self.model.eval([token])
            token = self.model.sample(temp=0.0)
        return {"seconds": time.perf_counter() - started}

    def state(self) -> dict[str, Any]:
        """Bytes of the sequence's saved state, as llama_state_seq_save_file would write it."""
        return {"bytes": int(self.library.llama_state_seq_get_size(self.model.ctx, 0))}

    def reply(self, value: dict[str, Any]) -> None:
        """Send one line."""
        self.replies.write(json.dumps(value) + "\n")
        self.replies.flush()


def main() -> int:
    """Answer requests until stdin ends."""
    # The library prints on stdout at times; only replies go where the parent reads.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    stand: Stand | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if stand is None:
                import llama_cpp

                stand = Stand(llama_cpp, replies)
            reply = getattr(stand, request.pop("do"))(**request)
        except ImportError as error:
            reply = {"error": f"llama-cpp-python cannot be imported ({error}).", "exit_code": 2}
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            reply = {"error": f"llama.cpp failed: {error}."}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
