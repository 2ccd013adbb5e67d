"""How byte-level BPE splits text before merging, by the name llama.cpp gives the rule (`tokenizer.ggml.pre`).

A rule is a list of patterns applied one after another, each cutting its matches out of the pieces so far. Facts: the
tokenizer.json of the models named, and llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA3 = _WORD + r"|\p{N}{1,3}" + _TAIL
QWEN2 = _WORD + r"|\p{N}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_CASED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = "|".join(_CASED) + r"|\p{N}" + _CASED_TAIL
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = "|".join(part + _ENDING for part in _CASED) + r"|\p{N}{1,3}" + _CASED_TAIL

_SINGLE_DIGITS = (r"\p{N}", GPT2)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"

SPLITS: dict[str, tuple[str, ...]] = {
    # SmolLM, SmolLM2, StarCoder and others: every digit alone
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _SINGLE_DIGITS),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "jina-es", "jina-de"), (GPT2,)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "dbrx", "smaug-bpe"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan", "megrez"), (QWEN2,)),
    "tekken": (TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4"), (GPT4O,)),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"),
    "default": (_PUNCTUATION, GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
IGNORES_MERGES = frozenset(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken"))
"""A piece that is a token as a whole is taken whole, whatever the merges say."""
_NORMALIZED = frozenset(("qwen2", "deepseek-r1-qwen"))
"""Unicode NFC before anything else, as their tokenizer.json has it."""


def byte_level_split(pre: str) -> tuple[Any, Any]:
    """(normalizer or None, pre-tokenizer) of a rule in SPLITS."""
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in SPLITS[pre]]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return (normalizers.NFC() if pre in _NORMALIZED else None), pre_tokenizers.Sequence(steps)
