"""The part of kvpress_peers.py that runs where kvpress is installed; knows nothing of Longread.

    PYTHON tests/bench/kvpress_side.py --model FOLDER --task TASK.json

TASK.json: {"presses": [...], "kept": [...], "max_new_tokens": n, "documents": [{"name", "prefix",
"tails", "answers"}]}, all texts as token ids. Every document is read whole by every press, pruned
to each share of its entries, and each question is asked of what is left, at its place after the
whole document. Prints a JSON line a row: document, press, kept, nll a question (nats a token of the
true answer), answers as token ids; press "full" is the cache with nothing gone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import kvpress
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar

# Names as they are printed; the second form shares a layer's budget out among its heads (AdaKV).
PRESSES = {
    "snapkv": lambda ratio: kvpress.SnapKVPress(ratio),
    "tova": lambda ratio: kvpress.TOVAPress(ratio),
    "keydiff": lambda ratio: kvpress.KeyDiffPress(ratio),
    "expected_attention": lambda ratio: kvpress.ExpectedAttentionPress(ratio),
    "adakv_snapkv": lambda ratio: kvpress.AdaKVPress(kvpress.SnapKVPress(ratio)),
    "adakv_expected_attention": lambda ratio: kvpress.AdaKVPress(
        kvpress.ExpectedAttentionPress(ratio, epsilon=1e-2)
    ),
    "compactor": lambda ratio: kvpress.CompactorPress(ratio),
    "kvzip": lambda ratio: kvpress.KVzipPress(ratio),
    "kvzip_plus": lambda ratio: kvpress.KVzipPress(ratio, kvzip_plus_normalization=True),
}


class Asked:
    """A document's cache, of which questions are asked one after the other."""

    def __init__(self, model: Any, prefix: list[int], press: Any) -> None:
        self.model, self.n_tokens = model, len(prefix)
        self.cache = DynamicCache()
        with press(model) if press is not None else contextlib.nullcontext():
            model.model(input_ids=torch.tensor([prefix]), past_key_values=self.cache)
        self.lengths = [self.cache.get_seq_length(n) for n in range(len(self.cache))]

    def logits(self, ids: list[int], done: int, keep: int) -> torch.Tensor:
        """The last `keep` positions' logits of tokens that follow the document and `done` more."""
        first = self.n_tokens + done
        out = self.model(
            input_ids=torch.tensor([ids]),
            past_key_values=self.cache,
            position_ids=torch.arange(first, first + len(ids))[None],
            logits_to_keep=keep,
        )
        return out.logits[0].float()

    def forget(self) -> None:
        """Back to the document alone."""
        for layer, n in zip(self.cache.layers, self.lengths, strict=True):
            layer.keys, layer.values = layer.keys[:, :, :n], layer.values[:, :, :n]

    def nll(self, tail: list[int], answer: list[int]) -> float:
        logits = self.logits([*tail, *answer[:-1]], 0, len(answer))
        self.forget()
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))

    def answer(self, tail: list[int], max_new_tokens: int, ends: set[int]) -> list[int]:
        ids: list[int] = []
        following = int(self.logits(tail, 0, 1)[-1].argmax())
        while following not in ends:
            ids.append(following)
            if len(ids) == max_new_tokens:
                break
            following = int(self.logits([following], len(tail) + len(ids) - 1, 1)[-1].argmax())
        self.forget()
        return ids


def rows_of(model: Any, task: dict[str, Any], document: dict[str, Any]) -> Any:
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    wanted = [("full", 1.0), *((p, kept) for p in task["presses"] for kept in task["kept"])]
    for name, kept in wanted:
        asked = Asked(model, document["prefix"], PRESSES[name](1 - kept) if kept < 1 else None)
        pairs = list(zip(document["tails"], document["answers"], strict=True))
        n_new = task["max_new_tokens"]
        yield {
            "document": document["name"],
            "press": name,
            "kept": kept,
            "nll": [asked.nll(tail, answer) for tail, answer in pairs],
            "answers": [asked.answer(t, n_new, ends) for t, _ in pairs] if n_new else None,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", type=Path, required=True)
    options = parser.parse_args()
    task = json.loads(options.task.read_text())
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        for document in task["documents"]:
            for row in rows_of(model, task, document):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
