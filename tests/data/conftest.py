"""Small real tokenizers, one for each published way of writing a chat, and a folder to write data files into.

The templates in `templates/` are those of well-known models, written out (Qwen3 without its tools part); the tokenizers
are trained here on a fixed text and carry each model's special tokens with their flags.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from topcoat.data import cache, prepare
from topcoat.data.load import load_data
from topcoat.data.render import Renderer
from topcoat.data.settings import DataSettings

TEXT = """The user asks a question and the assistant answers it. What is the capital of France? It is Paris.
How many days are in a week? There are seven days. Hello, how are you today? I am fine, thank you.
def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n\n[INST] [/INST] <<SYS>> system user model
Où est la gare? Das Wetter ist schön. 1234567890 3.14159 + - * / = ( ) [ ] < > . , ; : ! ? ' "
"""
# How Llama-3 and Qwen2 cut text before merging
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Family:
    """One way of writing a chat: its template, its tokens, and what its answers look like."""

    template: str
    bos: str | None
    eos: str
    stop: str
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    """Added tokens that are not special, such as <think>."""
    style: str = "bytes"
    adds_bos: bool = False
    rstrip: bool = False
    has_system: bool = True
    exact: bool = True
    """An answer is trained as it stands in the data, not stripped of its outer white space."""
    extra: dict[str, object] = field(default_factory=dict)
    allow: tuple[str, ...] = ()


CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
FAMILIES = {
    "chatml": Family("chatml", None, "<|im_end|>", "<|im_end|>", CHATML),
    "chatml_pad_is_eos": Family("chatml", None, "<|im_end|>", "<|im_end|>", CHATML, extra={"pad_token": "<|im_end|>"}),
    "llama2": Family(
        "llama2", "<s>", "</s>", "</s>", ("<s>", "</s>"), style="sentencepiece", adds_bos=True, exact=False
    ),
    "llama3": Family(
        "llama3",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        adds_bos=True,
        exact=False,
    ),
    "mistral": Family(
        "mistral", "<s>", "</s>", "</s>", ("<s>", "</s>"), style="sentencepiece", adds_bos=True, has_system=False
    ),
    "mistral_system_last": Family(
        "mistral_system_last", "<s>", "</s>", "</s>", ("<s>", "</s>", "[INST]", "[/INST]"), allow=("moved_turns",)
    ),
    "gemma": Family(
        "gemma",
        "<bos>",
        "<eos>",
        "<end_of_turn>",
        ("<bos>", "<eos>"),
        ("<start_of_turn>", "<end_of_turn>"),
        adds_bos=True,
        has_system=False,
        exact=False,
    ),
    "phi3": Family(
        "phi3",
        None,
        "<|endoftext|>",
        "<|end|>",
        ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        rstrip=True,
        exact=False,
    ),
    "zephyr": Family("zephyr", "<s>", "</s>", "</s>", ("<s>", "</s>"), style="sentencepiece"),
    "qwen3": Family("qwen3", None, "<|im_end|>", "<|im_end|>", CHATML, ("<think>", "</think>"), exact=False),
    "marked": Family("marked", None, "<|im_end|>", "<|im_end|>", CHATML),
    "deepseek_r1": Family(
        "deepseek_r1",
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        adds_bos=True,
    ),
}


@lru_cache
def _trained(style: str) -> str:
    """tokenizer.json of a BPE trained on TEXT: byte-level as in GPT-2, or with ▁ and byte fallback as in Llama-2."""
    if style == "bytes":
        tokenizer = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet, first = pre_tokenizers.ByteLevel.alphabet(), []
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no piece has ▁ inside, as in Llama-2
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet, first = ["▁"], ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=len(first) + 400, special_tokens=first, initial_alphabet=sorted(alphabet), show_progress=False
    )
    text = TEXT if style == "bytes" else TEXT.replace("\n", " ")  # Llama-2 knows a line break as a byte only
    tokenizer.train_from_iterator([text] * 3, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = []
    return json.dumps(spec)


def make_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A small tokenizer with the family's special tokens and template."""
    backend = Tokenizer.from_str(_trained(family.style))
    backend.add_special_tokens([AddedToken(text, rstrip=family.rstrip, normalized=False) for text in family.special])
    backend.add_tokens([AddedToken(text, normalized=False) for text in family.plain])
    if family.adds_bos and family.bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, backend.token_to_id(family.bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        clean_up_tokenization_spaces=False,
        **family.extra,
    )
    tokenizer.chat_template = (Path(__file__).parent / "templates" / f"{family.template}.jinja").read_text("utf-8")
    return tokenizer


@dataclass(frozen=True)
class Chat:
    """A family with its tokenizer and renderer."""

    family: Family
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer


@lru_cache
def make_chat(name: str) -> Chat:
    tokenizer = make_tokenizer(FAMILIES[name])
    return Chat(FAMILIES[name], tokenizer, Renderer(tokenizer, allow=FAMILIES[name].allow))


@pytest.fixture(scope="session", params=list(FAMILIES))
def chat(request: pytest.FixtureRequest) -> Chat:
    """Each family in turn."""
    return make_chat(request.param)


@pytest.fixture(scope="session")
def chat_of():
    """A family by name."""
    return make_chat


@pytest.fixture(scope="session")
def chatml() -> Chat:
    return make_chat("chatml")


@pytest.fixture
def write(tmp_path: Path):
    """write(name, rows or text or bytes) -> path of the file."""

    def write_file(name: str, content: object) -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_bytes(content.encode())
        else:
            path.write_bytes("".join(json.dumps(row) + "\n" for row in content).encode())
        return str(path)

    return write_file


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def load(chatml, folder):
    def load_rows(path=None, tokenizer=chatml.tokenizer, template=None, **settings):
        settings.setdefault("validation", None)
        chosen = DataSettings(**({"train": path} if path else {}), **settings)
        return load_data(chosen, tokenizer, context_length=4096, seed=1, chat_template=template)

    return load_rows


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """The files that were tokenized."""
    built = []
    once = prepare._build

    def build(source, *arguments):
        built.append(Path(source.path).name)
        return once(source, *arguments)

    monkeypatch.setattr(prepare, "_build", build)
    return built
