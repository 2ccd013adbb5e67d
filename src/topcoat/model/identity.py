"""Fingerprints of base, tokenizer and template, whatever the file layout.

base = SHA-256 over one line per tensor, sorted by name: name, stored dtype, shape, SHA-256 of the stored bytes. So
sharding, file order, and copies of a tied head change nothing, and one flipped bit changes everything. Hashing runs in
a worker thread beside the quantization of the same bytes (hashlib releases the lock).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from topcoat.config import Config

# Said by the library or the machine that wrote the file, not by the model.
_VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache", "_attn_implementation")


class Identity(Config):
    """What was loaded, so that an adapter is never put on another base."""

    base: str
    """SHA-256 of the tensors."""
    config: str
    """SHA-256 of the architecture's settings."""
    tokenizer: str
    """SHA-256 of vocabulary, merges, rules and special tokens."""
    chat_template: str
    """SHA-256 of the chat template in effect."""
    architecture: str
    """The model class, such as LlamaForCausalLM."""
    source: str = Field("", repr=False)
    """The path or hub id as the user wrote it: a hint for people, never compared."""


class TensorHasher:
    """Collects one digest per tensor while the tensors stream by, and gives the hash of all of them."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[str, Future[str]]] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="topcoat-hash")

    def add(self, name: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> Future[str]:
        """Start hashing `data`, the stored bytes; the caller may read them too, and waits before it drops them."""
        digest = self._worker.submit(lambda: hashlib.sha256(data).hexdigest())
        self._lines[name] = (f"{name} {dtype} {'x'.join(map(str, shape))}", digest)
        return digest

    def forget(self, name: str) -> None:
        """Leave a tensor out: a copy of one that counts already."""
        del self._lines[name]

    def digest(self) -> str:
        """SHA-256 over all tensors added, sorted by name."""
        whole = hashlib.sha256()
        for name in sorted(self._lines):
            head, digest = self._lines[name]
            whole.update(f"{head} {digest.result()}\n".encode())
        self._worker.shutdown()
        return whole.hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of `value` as canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_config(facts: Mapping[str, Any]) -> str:
    """SHA-256 of a model config without what names the writer of the file."""
    return hash_json({key: value for key, value in facts.items() if key not in _VOLATILE})


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that decides how text becomes ids."""
    facts: dict[str, Any] = {"special": tokenizer.special_tokens_map}
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        for setting in ("version", "truncation", "padding"):
            rules.pop(setting, None)
        facts["rules"] = rules
    else:
        facts["vocab"] = tokenizer.get_vocab()
    return hash_json(facts)


def hash_text(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
