"""llama.cpp as an independent reader of GGUF files: the server of the xllamacpp wheel, on one thread."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REASON = "llama.cpp is not installed here: pip install xllamacpp"


class LlamaCpp:
    """A model that llama.cpp has loaded."""

    def __init__(self, server: Any) -> None:
        self.server = server

    def ask(self, path: str, **values: Any) -> dict[str, Any]:
        """The answer to a POST of `values`."""
        data = json.dumps(values).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.server.listening_address}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.loads(answer.read()))

    def greedy(self, ids: Sequence[int], n: int, **values: Any) -> list[int]:
        """The n likeliest tokens behind `ids`, one after another."""
        found = self.ask("/completion", prompt=list(ids), n_predict=n, temperature=0, return_tokens=True, **values)
        return [int(token) for token in found["tokens"]]

    def next_logprobs(self, ids: Sequence[int], n: int = 20, **values: Any) -> dict[int, float]:
        """Token id -> log probability of the n likeliest next tokens; empty where the next one is half a character."""
        found = self.ask("/completion", prompt=list(ids), n_predict=1, temperature=0, n_probs=n, **values)
        first = (found.get("completion_probabilities") or [{"top_logprobs": []}])[0]
        return {int(entry["id"]): float(entry["logprob"]) for entry in first["top_logprobs"]}

    def tokenize(self, text: str) -> list[int]:
        """The ids of `text`, special tokens recognised and none added."""
        found = self.ask("/tokenize", content=text, add_special=False, parse_special=True)
        return [int(token) for token in found["tokens"]]


@contextmanager
def llama_cpp(model: Path, *adapters: Path) -> Iterator[LlamaCpp]:
    """llama.cpp with `model` loaded, and `adapters` at scale 1. Skips the test where it is not installed."""
    xllamacpp = pytest.importorskip("xllamacpp", reason=REASON)
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 1.0) for path in adapters]
    server = xllamacpp.Server(params)
    try:
        yield LlamaCpp(server)
    finally:
        del server
