"""Valid files to start from, for each kind of file that is fuzzed, and words that mutations put into them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mutations import dumps

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Où?"},
    {"role": "assistant", "content": "Là."},
]

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": [2, null]}'}}

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]

ROWS: dict[str, list[dict[str, Any]]] = {
    "messages": [
        {"messages": CHAT},
        {"messages": [*CHAT, CHAT[1], {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}]},
    ],
    "tools": [
        {
            "messages": [
                CHAT[1],
                {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
                {"role": "tool", "tool_call_id": "c1", "content": "3"},
                CHAT[2],
            ],
            "tools": TOOLS,
        }
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}], "tools": "[]"}
    ],
    "alpaca": [{"instruction": "Add", "input": "1 2", "output": "3", "system": "x"}] * 3,
    "prompt_completion": [{"prompt": "Hello", "completion": "Hi \u2028 \U0001f600", "score": 0.5}] * 2,
    "text": [{"text": "plain"}, {"text": "more\ntext", "id": 17, "meta": {"a": [None, True]}}],
    "preference": [
        {"prompt": CHAT[:2], "chosen": CHAT[2:], "rejected": "No."},
        {"prompt": "x", "chosen": "y", "rejected": "z"},
    ],
    "unpaired": [{"prompt": "x", "completion": "y", "label": True}, {"messages": CHAT, "label": False}],
}


def lines(rows: Any) -> bytes:
    return b"".join(dumps(row) + b"\n" for row in (rows if isinstance(rows, list) else [rows]))


def values_of_rows() -> Sequence[Any]:
    return list(ROWS.values())


@cache
def json_line_seeds() -> Sequence[bytes]:
    return [lines(rows) for rows in ROWS.values()]


@cache
def json_seeds() -> Sequence[bytes]:
    return [json.dumps(rows, indent=indent).encode() for rows in ROWS.values() for indent in (None, 1)]


@cache
def table_seeds(separator: str) -> Sequence[bytes]:
    found = []
    for rows in (ROWS["alpaca"], ROWS["prompt_completion"], ROWS["messages"]):
        out = io.StringIO()
        import csv

        writer = csv.DictWriter(out, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows)
        found += [out.getvalue().encode(), out.getvalue().replace("\r\n", "\n").encode()]
    return [*found, f'prompt{separator}completion\n"a{separator} ""b""\nc"{separator}d\n'.encode()]


@cache
def parquet_seeds() -> Sequence[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    for rows in ROWS.values():
        for options in (
            {},
            {"compression": "zstd", "use_dictionary": False},
            {"compression": "none", "version": "1.0"},
        ):
            out = io.BytesIO()
            try:
                pq.write_table(pa.Table.from_pylist(rows), out, **options)
            except pa.ArrowException:  # a column of several types
                continue
            found.append(out.getvalue())
    return found


def pack_zstd(data: bytes) -> bytes:
    import pyarrow as pa

    with pa.CompressedOutputStream(sink := pa.BufferOutputStream(), "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


@cache
def gguf_seeds() -> Sequence[bytes]:
    """A tiny model of few tensors, written by the gguf library."""
    import tempfile

    import gguf
    import numpy as np

    found = []
    for arch in ("llama", "qwen3", "gemma3", "phi3", "gptneox", "smollm3"):
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/a.gguf"
            writer = gguf.GGUFWriter(path, arch)
            writer.add_block_count(1)
            writer.add_context_length(64)
            writer.add_embedding_length(32)
            writer.add_feed_forward_length(32)
            writer.add_head_count(2)
            writer.add_layer_norm_rms_eps(1e-5)
            writer.add_layer_norm_eps(1e-5)
            writer.add_tokenizer_model("llama" if arch == "gemma3" else "gpt2")
            writer.add_tokenizer_pre("default")
            writer.add_token_scores([0.0, -1.0, -2.0, 0.0])
            writer.add_rope_freq_base(10000.0)
            writer.add_token_list(["a", "b", "ab", "<s>"])
            writer.add_token_types([1, 1, 1, 3])
            writer.add_token_merges(["a b"])
            writer.add_eos_token_id(3)
            writer.add_chat_template("{{ messages[0].content }}")
            writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
            writer.add_tensor("blk.0.attn_q.weight", np.zeros((32, 32), np.float16))
            if arch in ("llama", "smollm3"):
                writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            found.append(Path(path).read_bytes())
    return found


@cache
def safetensors_seeds() -> Sequence[bytes]:
    import torch
    from safetensors.torch import save

    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {f"{prefix}.lora_A.weight": torch.zeros(2, 4), f"{prefix}.lora_B.weight": torch.zeros(4, 2)}
    return [save(pair), save({"a": torch.zeros(3, dtype=torch.bfloat16)}, {"format": "pt"}), save({})]


def adapter_values() -> Sequence[Any]:
    return [
        {
            **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "x", "r": 8, "lora_alpha": 16},
            **{"lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj", "v_proj"], "use_rslora": False},
            **{"modules_to_save": None, "rank_pattern": {}, "init_lora_weights": True, "fan_in_fan_out": False},
        },
        {
            "peft_type": "LORA",
            "r": 1,
            "lora_alpha": 1.5,
            "target_modules": "all-linear",
            "modules_to_save": ["lm_head"],
        },
    ]


def config_values() -> Sequence[Any]:
    common = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    common |= {"num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return [
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **common, "rope_parameters": rope},
        {
            "model_type": "qwen3",
            "head_dim": 16,
            **common,
            "layer_types": ["full_attention"] * 2,
            "auto_map": {"a": "b"},
        },
        {"model_type": "gemma3_text", **common, "sliding_window": 16, "quantization_config": None},
    ]


@cache
def tokenizer_values() -> Sequence[Any]:
    from topcoat.model.tiny import tiny_tokenizer

    spec = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    keep = 280
    spec["model"]["vocab"] = {token: i for token, i in spec["model"]["vocab"].items() if i < keep}
    vocabulary = spec["model"]["vocab"]
    spec["model"]["merges"] = [
        m for m in spec["model"]["merges"] if "".join(m) in vocabulary and set(m) <= set(vocabulary)
    ]
    return [spec]


RECIPE = b"""# a comment
model: {path: base, quantization: {format: nf4, double_quant: true}}
data:
  train: rows.jsonl
  validation: 0.1
  columns: {prompt: question, completion: answer}
adapter:
  method: lora
  r: 16
  target_modules: [q_proj, v_proj]
train: {epochs: 1, learning_rate: 2e-4, seed: 7}
output: runs/x
"""


@cache
def manifest_seeds() -> Sequence[bytes]:
    from topcoat.training.manifest import Manifest

    files = {"a.safetensors": {"bytes": 3, "sha256": "0" * 64}}
    fields = {"step": 20, "best": True, "run_id": "r", "identity": {"base": "1" * 64}, "files": files}
    return [Manifest.model_validate(fields).to_bytes()]


def one_object(values: Callable[[], Sequence[Any]]) -> Callable[[], Sequence[bytes]]:
    return lambda: [json.dumps(value, indent=1).encode() for value in values()]


JSON_WORDS = (
    b'"role"',
    b'"content"',
    b"null",
    b"NaN",
    b"1e999",
    b"\\ud800",
    b"\\u0000",
    b'{"a":',
    b"[" * 50,
    b"\xef\xbb\xbf",
)

CSV_WORDS = (b'"', b'""', b",", b"\r", b"\r\n", b"\0", b"\t", b'"\n', b"\xff", b";")

GGUF_WORDS = (b"GGUF", b"\x08\0\0\0", b"\x09\0\0\0", b"llama", b"general.architecture", b"\0" * 32)

YAML_WORDS = (
    b"&a ",
    b"*a",
    b"!!python/object:os.system ",
    b"- ",
    b": ",
    b"\t",
    b"---\n",
    b"|\n",
    b"<<: ",
    b"[" * 40,
    b"? ",
    b"%YAML 1.1\n",
)
