"""Seeded random models of every family, two layers each, with a real tokenizer: for tests, probes and dry runs.

A tiny model is a true instance of its architecture (grouped-query attention, a sliding layer beside a full one, soft
caps, a NoPE layer: whatever the family has), small enough to build in milliseconds. The tokenizer is a byte-level BPE
trained in process on the fixed text below, so nothing is downloaded and every text round-trips.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from topcoat.model.tokenizers import CHATML

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2, as in SmolLM2
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
VOCAB = 512
"""Embedding rows; the tokenizer fills a few fewer, like the padded vocabularies of published models."""

# The split of Qwen2: AutoTokenizer gives it to every qwen2 directory, whatever its tokenizer.json says.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEXT = """A thin coat is laid over a finished model, and then the model answers in another voice.
The user asks a question; the assistant answers it. The system says who the assistant is.
What is the capital of France? The capital of France is Paris. How many days are in a week? There are seven days.
Please classify the ticket: the printer does not print, the screen stays black, the invoice shows the wrong amount.
def add(first, second):\n    return first + second\n{"name": "value", "list": [1, 2, 3], "true": false}
Every weight is frozen and only the small matrices learn. Loss goes down, step after step, until it does not.
Où est la gare? Das Wetter ist schön. 1234567890 3.14159 + - * / = ( ) [ ] < > . , ; : ! ? ' "
"""

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_WIDE_HEADS = {"head_dim": 32}  # heads x head_dim is not the hidden size, as in Qwen3 and Gemma
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {**_WIDE_HEADS},
    "smollm3": {"no_rope_layer_interval": 2, "tie_word_embeddings": True},
    "gemma2": {**_WIDE_HEADS, "query_pre_attn_scalar": 32, "sliding_window": 32},
    "gemma3_text": {**_WIDE_HEADS, "query_pre_attn_scalar": 32, "sliding_window": 32},
    "phi3": {"original_max_position_embeddings": 512, "sliding_window": None},
    "gpt_neox": {"num_key_value_heads": None, "rotary_pct": 0.25},
    "olmo2": {},
}
TINY_TYPES: tuple[str, ...] = tuple(_OWN)
"""Every family of `families.FAMILIES`, and olmo2 for the architectures that are in no table."""


def tiny_config(model_type: str, *, layers: int = 2, vocab: int = VOCAB, **config: Any) -> Any:
    """The transformers config of a tiny model; keywords override single fields."""
    fields = {**_SIZES, **_OWN.get(model_type, {}), "num_hidden_layers": layers, "vocab_size": vocab}
    fields |= {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    if model_type in ("gemma2", "gemma3_text"):
        fields["layer_types"] = [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]
    fields |= config
    return AutoConfig.for_model(model_type, **{name: value for name, value in fields.items() if value is not None})


def tiny_model(
    model_type: str,
    seed: int = 0,
    *,
    layers: int = 2,
    vocab: int = VOCAB,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> PreTrainedModel:
    """A random model of `model_type`, the same for the same seed, in eval mode. No norm or bias is left trivial."""
    settings = tiny_config(model_type, layers=layers, vocab=vocab, **config)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:  # norms and biases: moved off 1 and 0, so that a lost one shows in the logits
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise * (0.5 if "embed" in name else 0.8 / parameter.shape[-1] ** 0.5))
    return model.to(dtype).eval()


@lru_cache(maxsize=1)
def _trained_bpe() -> str:
    """tokenizer.json of the tiny tokenizer, as text: 256 bytes, three specials, some 200 merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 12,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return tokenizer.to_str()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `VOCAB` tokens with a ChatML template; it ends turns with <|im_end|>."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_bpe()),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def save_tiny(folder: str | Path, model_type: str = "llama", seed: int = 0, **kwargs: Any) -> Path:
    """Write a complete Hugging Face directory of a tiny model; keywords go to `tiny_model`. Returns the directory."""
    folder = Path(folder)
    tiny_model(model_type, seed, **kwargs).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS_ID, "pad_token_id": PAD_ID}))
    return folder
