"""A GGUF file that is cut off or damaged is refused in a sentence, wherever the damage lies."""

from __future__ import annotations

import errno
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from engine import gguf, sources
from engine.errors import ModelCorrupt, NotEnoughDisk

ARCHITECTURE = b"llama"


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def number(key: bytes, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def whole() -> bytes:
    """The head of a GGUF file: five settings, a vocabulary of three words, one tensor of 4 x 4."""
    words = b"".join(text(word) for word in (b"the", b"sea", b"calm"))
    settings = [
        text(b"general.architecture") + struct.pack("<I", 8) + text(ARCHITECTURE),
        number(b"llama.block_count", 1),
        number(b"llama.embedding_length", 4),
        number(b"llama.feed_forward_length", 4),
        number(b"llama.attention.head_count", 1),
        text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + words,
    ]
    tensor = text(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 4, 0, 0)
    head = gguf.MAGIC + struct.pack("<IQQ", 3, 1, len(settings)) + b"".join(settings) + tensor
    return head + bytes(-len(head) % 32) + bytes(64)


def changed(at: int, value: bytes) -> bytes:
    data = bytearray(whole())
    data[at : at + len(value)] = value
    return bytes(data)


def refused(data: bytes, folder: Path) -> ModelCorrupt:
    file = folder / "model.gguf"
    file.write_bytes(data)
    with pytest.raises(ModelCorrupt) as caught:
        sources.locate(str(file), folder / "models")
    assert "model.gguf" in caught.value.cause and "\n" not in caught.value.cause
    assert caught.value.next_step.startswith("Download")
    left = [p.name for p in (folder / "models" / sources.CONVERTED).iterdir()]
    assert left == ["digests.json"], "nothing of the conversion is left"
    return caught.value


@pytest.mark.parametrize("length", [0, 4, 20, 24, 40, 100, 200])
def test_a_file_that_was_cut_off_is_refused(length: int, tmp_path: Path) -> None:
    assert length < len(whole())
    refused(whole()[:length], tmp_path)


HUGE = b"\xff" * 8
DAMAGE = {
    "another version": (4, b"\x63"),
    "number of tensors": (8, HUGE),
    "number of settings": (16, HUGE),
    "length of a key": (24, HUGE),
    "letters of a key": (whole().index(b"general") + 3, b"\xff"),
    "letters of the architecture": (whole().index(ARCHITECTURE), b"xxxxx"),
    "kind of a setting": (whole().index(b"llama.block_count") + 17, b"\x08"),
    "number of layers": (whole().index(b"llama.block_count") + 21, bytes(4)),
    "very many layers": (whole().index(b"llama.block_count") + 21, b"\xff" * 4),
    "very wide layers": (whole().index(b"llama.embedding_length") + 26, b"\xff" * 3),
    "number of words": (whole().index(b"ggml.tokens") + 19, HUGE),
    "size of a tensor": (whole().index(b"token_embd.weight") + 21, HUGE),
}


@pytest.mark.parametrize(("at", "value"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_refused(at: int, value: bytes, tmp_path: Path) -> None:
    assert refused(changed(at, value), tmp_path).next_step


@pytest.mark.parametrize(
    "problem", [OSError(errno.ENOSPC, "No space left on device"), MemoryError()], ids=repr
)
def test_a_full_disk_and_full_memory_are_not_a_damaged_file(
    problem: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def fail(*given: Any, **named: Any) -> Any:
        raise problem

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    file = tmp_path / "model.gguf"
    file.write_bytes(whole())
    with pytest.raises(type(problem)) as caught:
        sources.locate(str(file), tmp_path / "models")
    assert caught.value is problem


def test_a_disk_that_fills_up_while_the_copy_is_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **named: Any) -> Any:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    model = SimpleNamespace(
        state_dict=lambda: {"w": torch.ones(1)}, config=SimpleNamespace(tie_word_embeddings=False)
    )
    with pytest.raises(NotEnoughDisk, match="disk"):
        gguf._write_weights(model, tmp_path)
