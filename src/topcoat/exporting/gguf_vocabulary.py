"""A tokenizer -> GGUF's token lists: what model/gguf_tokenizer.py reads back.

Byte-level BPE goes under "gpt2", with its merges and the name llama.cpp gives to the rule that splits text; the rule is
found by what it does to a text full of edge cases, and one that has no name stops the export. SentencePiece BPE goes
under "llama", whose readers merge by score: a token's score is the rank of the first merge that makes it, with a minus.

What was written is read back and must encode the same texts to the same ids before a file is called done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from topcoat.errors import Refused, TopcoatError
from topcoat.model.gguf_header import GgufHeader
from topcoat.model.gguf_splits import IGNORES_MERGES, byte_level_split
from topcoat.model.gguf_tokenizer import read_gguf_tokenizer

NAMED = ("smollm", "gpt-2", "llama-bpe", "qwen2", "stablelm2", "tekken", "gpt-4o", "falcon", "default")
"""Rules of splitting that are looked for; several names of llama.cpp mean the same rule, and these are the plainest."""
EDGES = (
    "It's 12345 o'clock,\n\n  don't  be late!\t(Where's 7?) 日本語 naïve Ünïcode e\u0301 \u2028 x\u00a0y",
    "  HelloWorld'S   camelCase ALLCAPS $3.50+4=<b>^~|` \r\n end   ",
    "def f(a, b):\n    return a**2  # ½ ² 𝟙 ٣ 👩‍👩‍👧 😀\n\n\n\t\tfoo_bar__baz",
)
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "unknown": "unk_token_id", "padding": "pad_token_id"}


def vocabulary_metadata(
    tokenizer: PreTrainedTokenizerBase, rows: int, template: str | None, stop_ids: Sequence[int]
) -> dict[str, Any]:
    """The keys under `tokenizer.`; `rows` is how many the embedding has, `stop_ids` are what ends a turn of a chat.

    Raises TopcoatError for a tokenizer that GGUF cannot hold.
    """
    if not tokenizer.is_fast:
        raise _cannot("it has no tokenizer.json")
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    model = rules["model"]
    if model["type"] != "BPE":
        raise _cannot(f"it is of the kind {model['type']}, and GGUF holds BPE")
    merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    tokens = _tokens(tokenizer, rows)
    if model.get("byte_fallback"):
        found = _sentencepiece(rules, tokens, merges)
    else:
        found = {"ggml.model": "gpt2", "ggml.pre": split_name(tokenizer, bool(model.get("ignore_merges")))}
        found["ggml.merges"] = [" ".join(pair) for pair in merges]
    found["ggml.tokens"] = tokens
    found["ggml.token_type"] = _types(tokenizer, rules, tokens)
    for theirs, ours in _IDS.items():
        index = getattr(tokenizer, ours)
        if index is not None:
            found[f"ggml.{theirs}_token_id"] = index
    turn = next((index for index in stop_ids if index != tokenizer.eos_token_id), None)
    if turn is not None:
        found["ggml.eot_token_id"] = turn
    plain, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    found["ggml.add_bos_token"] = len(plain) > len(bare) and plain[0] == tokenizer.bos_token_id
    found["ggml.add_eos_token"] = len(plain) > len(bare) and plain[-1] == tokenizer.eos_token_id
    if template:
        found["chat_template"] = template
    return {f"tokenizer.{key}": value for key, value in found.items()}


def split_name(tokenizer: PreTrainedTokenizerBase, ignores_merges: bool) -> str:
    """llama.cpp's name of the rule by which this byte-level BPE splits text. Raises TopcoatError where it has none."""
    backend = tokenizer.backend_tokenizer
    if backend.pre_tokenizer is not None:
        for name in NAMED:
            normalizer, split = byte_level_split(name)
            if (name in IGNORES_MERGES) == ignores_merges and all(
                _pieces(backend.normalizer, backend.pre_tokenizer, text) == _pieces(normalizer, split, text)
                for text in EDGES
            ):
                return name
    raise _cannot("it splits text by a rule that llama.cpp has no name for")


def _pieces(normalizer: Any, split: Any, text: str) -> list[str]:
    normal = text if normalizer is None else normalizer.normalize_str(text)
    return [piece for piece, _ in split.pre_tokenize_str(normal)]


def _tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> list[str]:
    """One text for each row of the embedding; rows beyond the vocabulary are [PAD0], [PAD1] and so on."""
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(by_id) >= rows:
        raise _cannot(f"it has the id {max(by_id)}, and the embedding ends at {rows - 1}")
    return [by_id.get(index, f"[PAD{index}]") for index in range(rows)]


def _types(tokenizer: PreTrainedTokenizerBase, rules: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    known = tokenizer.get_vocab()
    added = {entry["content"]: _CONTROL if entry["special"] else _USER for entry in rules["added_tokens"]}
    fallback = bool(rules["model"].get("byte_fallback"))
    unknown = rules["model"].get("unk_token")

    def kind(token: str) -> int:
        if token not in known:
            return _UNUSED
        if fallback and token == unknown:
            return _UNKNOWN
        if fallback and len(token) == 6 and token.startswith("<0x"):
            return _BYTE
        return added.get(token, _NORMAL)

    return [kind(token) for token in tokens]


def _sentencepiece(rules: Mapping[str, Any], tokens: Sequence[str], merges: Iterable[Sequence[str]]) -> dict[str, Any]:
    """The keys of SentencePiece BPE with byte fallback."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    last = float(len(ranks))
    text = json.dumps([rules.get("normalizer"), rules.get("pre_tokenizer")], ensure_ascii=False)
    prefix = '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text
    scores = [-float(ranks[token]) if token in ranks else -last for token in tokens]
    return {"ggml.model": "llama", "ggml.pre": "default", "ggml.scores": scores, "ggml.add_space_prefix": prefix}


def require_same_tokens(
    tokenizer: PreTrainedTokenizerBase, header: GgufHeader, prompts: Iterable[Sequence[int]]
) -> int:
    """How many texts the file's tokenizer encodes just as `tokenizer`: the edge cases, and those of `prompts`.

    Raises Refused at the first that it does not.
    """
    read = read_gguf_tokenizer(header)
    texts = [*EDGES, *(tokenizer.decode(list(ids), skip_special_tokens=False) for ids in prompts)]
    for text in texts:
        one, other = (t(text, add_special_tokens=False)["input_ids"] for t in (tokenizer, read))
        if one != other:
            at = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
            raise Refused(
                f"the file's tokenizer cuts {text[:40]!r} otherwise: at token {at} {one[at : at + 4]} became "
                f"{other[at : at + 4]}",
                fix="nothing was published; merge it for transformers and vLLM instead: topcoat merge",
            )
    return len(texts)


def copied_metadata(header: GgufHeader, template: str | None) -> dict[str, Any]:
    """The keys under `tokenizer.` of a GGUF, as they are, with the chat template in effect."""
    found = {key: value for key, value in header.metadata.items() if key.startswith("tokenizer.")}
    found.pop("tokenizer.chat_template", None)
    return found | ({"tokenizer.chat_template": template} if template else {})


def _cannot(why: str) -> TopcoatError:
    return TopcoatError(
        f"GGUF cannot hold this tokenizer: {why}",
        where="tokenizer.json",
        fix="merge it for transformers and vLLM instead: topcoat merge",
    )
