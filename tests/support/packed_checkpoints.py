"""GPTQ and AWQ checkpoints written number by number from their definitions, and what they mean in float64.

Independent of Topcoat's reader: Python integers, one code at a time, no tensor operation but indexing.
"""

import json
import random
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def _words(codes, bits):
    """A list of codes -> int32 words: one long little-endian number, low bits first."""
    number = sum(code << bits * place for place, code in enumerate(codes))
    count = len(codes) * bits // 32
    return [(number >> 32 * word) & 0xFFFFFFFF for word in range(count)]


def _signed(words):
    return np.array(words, dtype=np.uint32).view(np.int32)


def draw(rng, rows, columns, bits, group_size, *, sym=False, act_order=False):
    """Codes (O, I), zeros and scales (L, O), g_idx (I,), and the weight (O, I) in float64 they stand for."""
    size = columns if group_size == -1 else group_size
    groups = -(-columns // size)
    codes = [[rng.randrange(2**bits) for _ in range(columns)] for _ in range(rows)]
    zeros = [[2 ** (bits - 1) if sym else rng.randrange(2**bits) for _ in range(rows)] for _ in range(groups)]
    scales = np.array([[rng.uniform(0.001, 0.02) for _ in range(rows)] for _ in range(groups)], dtype=np.float16)
    g_idx = [i // size for i in range(columns)]
    if act_order:
        rng.shuffle(g_idx)
    weight = np.empty((rows, columns))
    for o in range(rows):
        for i in range(columns):
            g = g_idx[i]
            weight[o, i] = float(scales[g, o]) * (codes[o][i] - zeros[g][o])
    return codes, zeros, scales, g_idx, weight


def gptq_linear(rng, rows, columns, bits, group_size, *, version=1, sym=False, act_order=False, with_g_idx=True):
    """({"qweight": ..., ...}, weight float64)."""
    codes, zeros, scales, g_idx, weight = draw(rng, rows, columns, bits, group_size, sym=sym, act_order=act_order)
    qweight = np.stack([_signed(_words(codes[o], bits)) for o in range(rows)], axis=1)
    less = 1 if version == 1 else 0
    stored = [[(zero - less) % 2**bits for zero in row] for row in zeros]
    qzeros = np.stack([_signed(_words(row, bits)) for row in stored])
    tensors = {"qweight": qweight, "qzeros": qzeros, "scales": scales}
    if with_g_idx:
        tensors["g_idx"] = np.array(g_idx, dtype=np.int32)
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}, weight


def awq_linear(rng, rows, columns, group_size):
    """The same for AWQ's gemm packing of 4 bits."""
    codes, zeros, scales, _, weight = draw(rng, rows, columns, 4, group_size)

    def packed(lines):  # lines (N, O): eight neighbours to a word, in AutoAWQ's order
        words = []
        for line in lines:
            words.append(
                [
                    sum(line[8 * k + AWQ_ORDER[nibble]] << 4 * nibble for nibble in range(8))
                    for k in range(len(line) // 8)
                ]
            )
        return _signed(words)

    by_input = [[codes[o][i] for o in range(rows)] for i in range(columns)]
    return {"qweight": packed(by_input), "qzeros": packed(zeros), "scales": scales}, weight


def repack(source: Path, out: Path, make, config):
    """A copy of the float32 checkpoint `source` whose block linears `make(rows, columns)` drew; name -> weight."""
    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    weights = {}
    for name in [name for name in tensors if ".layers." in name and tensors[name].ndim == 2]:
        parts, weights[name] = make(*tensors.pop(name).shape)
        tensors |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}
    save_file(tensors, out / "model.safetensors")
    facts = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(facts | {"quantization_config": config}))
    return weights


def rng(seed=0):
    return random.Random(seed)
