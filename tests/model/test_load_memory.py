"""Loading holds the finished model and one tensor: peak <= finished + 1.2 x largest + 300 MB, in a child process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from topcoat.model.tiny import tiny_config, tiny_tokenizer

CHILD = """
import json, sys, torch
from pathlib import Path
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings

def status(key):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key))
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
start = status("VmRSS")
quantization = json.loads(sys.argv[2])
base = load_model(ModelSettings(path=sys.argv[1], device="cpu", compute_dtype="bf16", quantization=quantization))
tensors = {t.data_ptr(): t.nbytes for t in [*base.model.parameters(), *base.model.buffers()]}
print(json.dumps({"start": start, "peak": status("VmHWM"), "finished": sum(tensors.values())}))
"""


def write_checkpoint(folder: Path, shapes: dict[str, tuple[int, int]]) -> int:
    """A bf16 checkpoint written a megabyte at a time; returns the bytes of its largest tensor."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * shape[1] if len(shape) == 2 else 2 * shape[0]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    piece = b"\x00\x3c\x80\xbc\x10\x3d" * (1 << 17)  # small bf16 values
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, len(piece)):
            file.write(piece[: end - start])
    return max(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, {"format": "nf4"}, {"format": "int8"}])
def test_loading_a_gigabyte_holds_the_finished_model_and_one_tensor(tmp_path, quantization):
    hidden, wide, layers, vocab = 2048, 5632, 8, 64_000
    config = tiny_config("llama", layers=layers, vocab=vocab, hidden_size=hidden, intermediate_size=wide, head_dim=128)
    config = type(config)(**config.to_dict() | {"num_attention_heads": 16, "num_key_value_heads": 8})
    config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    shapes: dict = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    for i in range(layers):
        block = f"model.layers.{i}."
        shapes |= {block + f"self_attn.{n}_proj.weight": (2048 if n in "qo" else 1024, hidden) for n in "qkvo"}
        shapes |= {block + f"mlp.{n}_proj.weight": (wide, hidden) for n in ("gate", "up")}
        shapes |= {block + "mlp.down_proj.weight": (hidden, wide)}
        shapes |= {block + f"{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    shapes["model.norm.weight"] = (hidden,)
    largest = write_checkpoint(tmp_path, shapes)
    assert (tmp_path / "model.safetensors").stat().st_size > 1e9
    command = [sys.executable, "-c", CHILD, str(tmp_path), json.dumps(quantization)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    print(found, largest)
    # what Python, torch and transformers take before loading is part of no model
    assert found["peak"] - found["start"] <= found["finished"] + 1.2 * largest + 300e6
