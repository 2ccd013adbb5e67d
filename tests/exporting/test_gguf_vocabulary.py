"""Tokenizers written into GGUF: the rule that splits, the scores, the kinds of tokens, and what cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from topcoat.errors import Refused, TopcoatError
from topcoat.exporting.gguf_vocabulary import (
    NAMED,
    copied_metadata,
    require_same_tokens,
    split_name,
    vocabulary_metadata,
)
from topcoat.model.gguf_header import GgufHeader
from topcoat.model.gguf_splits import IGNORES_MERGES, SPLITS, byte_level_split
from topcoat.model.gguf_tokenizer import read_gguf_tokenizer
from topcoat.model.tiny import tiny_tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def header(metadata: dict) -> GgufHeader:
    return GgufHeader(Path("x.gguf"), {"general.architecture": "llama", "llama.context_length": 99} | metadata, ())


def byte_level(pre: str) -> PreTrainedTokenizerFast:
    """A tokenizer that splits by the rule `pre`."""
    model = models.BPE({token: i for i, token in enumerate(ALPHABET)}, [], ignore_merges=pre in IGNORES_MERGES)
    backend = Tokenizer(model)
    normalizer, backend.pre_tokenizer = byte_level_split(pre)
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def sentencepiece(prefix: bool) -> PreTrainedTokenizerFast:
    """Llama 2's kind: SentencePiece BPE with bytes, a start token, and merges that do not follow the ids."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz"]
    merges = [("h", "e"), ("▁", "t"), ("▁t", "he"), ("i", "n"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    pieces += sorted("".join(pair) for pair in merges)  # in another order than the merges
    vocab = {token: i for i, token in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


@pytest.mark.parametrize("pre", NAMED)
def test_a_rule_is_found_by_what_it_does_to_text(pre):
    name = split_name(byte_level(pre), pre in IGNORES_MERGES)
    assert name == pre
    assert SPLITS[name] == SPLITS[pre]


@pytest.mark.parametrize("pre", sorted(SPLITS))
def test_whatever_rule_is_found_is_the_one_that_was_meant(pre):
    """Names that mean the same rule are written as the plainest of them."""
    tokenizer = byte_level(pre)
    try:
        name = split_name(tokenizer, pre in IGNORES_MERGES)
    except TopcoatError:  # the same split, and merges read another way: never taken for another rule
        assert not any(SPLITS[n] == SPLITS[pre] and (n in IGNORES_MERGES) == (pre in IGNORES_MERGES) for n in NAMED)
    else:
        assert SPLITS[name] == SPLITS[pre]


def test_a_rule_that_has_no_name_stops_the_export():
    tokenizer = tiny_tokenizer()
    split = pre_tokenizers.Split(Regex(r"[aeiou]"), behavior="isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False)])
    with pytest.raises(TopcoatError, match=r"splits text by a rule that llama\.cpp has no name for") as caught:
        vocabulary_metadata(tokenizer, 512, None, [2])
    assert "topcoat merge" in caught.value.problems[0].fix


def test_kinds_of_tokens_ids_and_template_are_written():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    found = vocabulary_metadata(tokenizer, 512, "{{ messages }}", [0, 2])
    types = found["tokenizer.ggml.token_type"]
    assert types[:3] == [3, 3, 3]
    assert types[tokenizer.convert_tokens_to_ids("<tool>")] == 4
    assert (types[300], types[511], found["tokenizer.ggml.tokens"][511]) == (1, 5, "[PAD511]")
    assert found["tokenizer.ggml.eos_token_id"] == 2
    assert found["tokenizer.ggml.eot_token_id"] == 0
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.chat_template"] == "{{ messages }}"
    assert require_same_tokens(tokenizer, header(found), [[5, 6, 7]]) == 4


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_vocabulary_merges_by_its_scores_as_by_its_merges(prefix):
    tokenizer = sentencepiece(prefix)
    found = vocabulary_metadata(tokenizer, 310, None, [2])
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.add_space_prefix"] is prefix
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert (types[0], types[1], types[3], types[tokens.index("▁the")], types[tokens.index("<tool>")]) == (2, 3, 6, 1, 4)
    read = read_gguf_tokenizer(header(found))
    for text in ("the cat in the hat", "a  cat", "naïve 7", "the", "the<tool>cat"):
        expected = tokenizer(text, add_special_tokens=False).input_ids
        assert read(text, add_special_tokens=False).input_ids == expected, text


def test_tokens_that_come_back_as_others_are_refused():
    tokenizer = tiny_tokenizer()
    found = vocabulary_metadata(tokenizer, 512, None, [2])
    found["tokenizer.ggml.pre"] = "llama-bpe"
    with pytest.raises(Refused, match=r"the file's tokenizer cuts .* otherwise: at token"):
        require_same_tokens(tokenizer, header(found), [])


def test_a_vocabulary_beyond_the_embedding_is_refused():
    with pytest.raises(TopcoatError, match="has the id 499, and the embedding ends at 99"):
        vocabulary_metadata(tiny_tokenizer(), 100, None, [2])


def test_a_tokenizer_of_another_kind_is_refused():
    unigram = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], 0)))
    with pytest.raises(TopcoatError, match="of the kind Unigram, and GGUF holds BPE"):
        vocabulary_metadata(unigram, 2, None, [])


def test_a_ggufs_own_tokenizer_is_copied_with_the_template_in_effect():
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.chat_template": "old", "llama.context_length": 4}
    assert copied_metadata(header(metadata), "new") == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.chat_template": "new",
    }
    assert "tokenizer.chat_template" not in copied_metadata(header(metadata), None)
