"""NF4 codes -> weights: w_i = table[code_i] * absmax[i // S] in float32, then rounded once to the target dtype.

Other tables of 16 levels, such as FP4's, go the same ways but for Triton and bitsandbytes, which know theirs by name;
tables of 8 and 4 levels have codes of 3 and 2 bits, and their own ways.

Weights lie in row-major order, two codes to a byte, the first in the high nibble (codes of 3 and 2 bits: the first in
the lowest bits); S weights in a row share one scale and a block may cross rows. With double quantization the scales are
8-bit codes with scales of their own: absmax_b = values[code_b] * nested_absmax[b // 256] + offset.

The same bits come from the definition, from compiled code (native/nf4.c, or Triton on a GPU, which read codes and
nested scales in one pass), from bitsandbytes' op where that is installed (AVX-512 on a CPU, CUDA on a GPU), and from a
byte -> two values table in plain torch, cut into pieces that stay in cache. (One exception: on CPUs with AVX512-BF16,
bitsandbytes turns bf16 numbers below 1.2e-38 into zero.)

NF4: Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, section 3 and appendix E.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from topcoat.kernels.bitsandbytes_library import bitsandbytes_loads
from topcoat.kernels.code_sizes import packed_bytes
from topcoat.kernels.dispatch import is_flat_float, native_for
from topcoat.kernels.native.calls import settle
from topcoat.kernels.native.structures import fields
from topcoat.kernels.packed_codes import unpack_flat
from topcoat.kernels.triton_ops.available import triton_can

# The quantiles of N(0, 1) as bitsandbytes writes them into its files; regenerated in float64 they differ by 1.1e-7.
NF4_TABLE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
PIECE = 1 << 17
"""Weights rebuilt at a time: 512 KiB of float32, which stays in a core's second-level cache on its way to `out`."""

FAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CPU_LARGEST_BLOCK = 1024
"""Above this, bitsandbytes' CPU op leaves its C code for a torch.compile of plain torch."""


Table = tuple[float, ...]
"""The 4, 8 or 16 values that codes stand for."""


def bits_of(levels: Table) -> int:
    """Of a code of one of `levels`."""
    return len(levels).bit_length() - 1


def dequantize_nf4_reference(
    packed: Tensor, absmax: Tensor, block_size: int, out: Tensor, levels: Table = NF4_TABLE
) -> Tensor:
    """The definition: fills and returns `out` (O, I). `packed` are the codes' bytes, `absmax` ceil(N / S) float32."""
    table = _table(levels, packed.device)
    codes = unpack_flat(packed, out.numel(), bits_of(levels))  # (N,)
    values = table[codes.int()]  # (N,)
    scale_blocks_(values, absmax, block_size)
    return out.copy_(values.view(out.shape))


def scale_blocks_(values: Tensor, scales: Tensor, block_size: int) -> Tensor:
    """Multiplies each run of `block_size` of `values` (N,) by its entry of `scales` (ceil(N / S),), in place."""
    whole = values.numel() // block_size
    values[: whole * block_size].view(-1, block_size).mul_(scales[:whole, None])
    if whole * block_size < values.numel():
        values[whole * block_size :].mul_(scales[whole])
    return values


Nested = tuple[Tensor, Tensor, Tensor]
"""What double quantization adds: nested_absmax (ceil(blocks / 256),), offset (), values (256,), all float32."""
NESTED_BLOCK = 256
"""Scales that share one nested scale."""


def nested_scales(codes: Tensor, nested: Nested) -> Tensor:
    """The definition: codes (blocks,) uint8 -> absmax (blocks,) float32."""
    nested_absmax, offset, values = nested
    return scale_blocks_(values.index_select(0, codes.int()), nested_absmax, NESTED_BLOCK).add_(offset)


def dequantize_nf4_table(
    packed: Tensor, absmax: Tensor, block_size: int, out: Tensor, levels: Table = NF4_TABLE
) -> Tensor:
    """Plain torch, faster: one look-up gives both values of a byte, piece by piece into `out` (contiguous)."""
    pairs, flat, packed = _pairs(levels, packed.device), out.view(-1), packed.reshape(-1)
    step = max(1, PIECE // block_size) * block_size  # whole blocks, and an even count, in every piece but the last
    for start in range(0, flat.numel(), step):
        end = min(start + step, flat.numel())
        both = pairs.index_select(0, packed[start // 2 : (end + 1) // 2].int())  # (bytes, 2)
        values = scale_blocks_(both.view(-1)[: end - start], absmax[start // block_size :], block_size)
        flat[start:end].copy_(values)
    return out


def _in_pieces(packed: Tensor, absmax: Tensor, block_size: int, out: Tensor, levels: Table) -> Tensor:
    """The definition, some blocks at a time: its temporaries are five times as large as bf16 weights."""
    flat, packed, bits = out.view(-1), packed.reshape(-1), bits_of(levels)
    step = max(1, PIECE // block_size) * block_size  # whole blocks begin on a byte
    for start in range(0, flat.numel(), step):
        end = min(start + step, flat.numel())
        codes = packed[start * bits // 8 : start * bits // 8 + packed_bytes(end - start, bits)]
        dequantize_nf4_reference(codes, absmax[start // block_size :], block_size, flat[start:end], levels)
    return out


@cache
def _table(levels: Table, device: torch.device) -> Tensor:
    """(K,) float32: the levels, on `device`."""
    with torch.inference_mode(False):  # a cached tensor born in inference mode stays one for ever
        return torch.tensor(levels, device=device)


@cache
def _pairs(levels: Table, device: torch.device) -> Tensor:
    """(256, 2) float32: the two values of every byte."""
    with torch.inference_mode(False):  # a cached tensor born in inference mode stays one for ever
        table = _table(levels, device)
        byte = torch.arange(256, device=device)
        return torch.stack((table[byte >> 4], table[byte & 15]), dim=-1)


def dequantize_nf4_bitsandbytes(packed: Tensor, absmax: Tensor, block_size: int, out: Tensor) -> Tensor:
    """bitsandbytes' op into `out` (contiguous); ask `bitsandbytes_can` first.

    The CPU op finds the scale of a row's first weight as row * (I // S), which is another block's as soon as I is no
    multiple of S: (4, 96) with S 64 comes back wrong without a word in 0.50. So it is always given the shape
    (blocks, S), where every row is one block, and the short last block goes the plain way. It also has no variant
    that writes into a given tensor, so pieces pass through the cache on their way to `out`.
    """
    if packed.device.type != "cpu":
        op = torch.ops.bitsandbytes.dequantize_4bit.out
        op(packed, absmax, block_size, "nf4", out.shape, out.dtype, out=out)
        return out
    op, flat, packed = torch.ops.bitsandbytes.dequantize_4bit.default, out.view(-1), packed.reshape(-1)
    blocks, rows = flat.numel() // block_size, max(1, PIECE // block_size)
    for first in range(0, blocks, rows):
        last = min(first + rows, blocks)
        codes = packed[first * block_size // 2 : last * block_size // 2]
        piece = op(codes, absmax[first:last], block_size, "nf4", (last - first, block_size), out.dtype)
        flat[first * block_size : last * block_size].copy_(piece.view(-1))
    if blocks * block_size < flat.numel():
        tail = blocks * block_size
        dequantize_nf4_reference(packed[tail // 2 :], absmax[blocks:], block_size, flat[tail:])
    return out


def bitsandbytes_can(packed: Tensor, block_size: int, out: Tensor) -> bool:
    """Is there an op of bitsandbytes for this device, and does it take this dtype and block size?"""
    if out.dtype not in FAST_DTYPES or not out.is_contiguous() or not _bitsandbytes_kernel(packed.device.type):
        return False
    return packed.device.type != "cpu" or block_size <= CPU_LARGEST_BLOCK


@cache
def _bitsandbytes_kernel(device_type: str) -> bool:
    """True where bitsandbytes imports and its compiled code serves this kind of device."""
    if device_type not in ("cpu", "cuda") or not bitsandbytes_loads():
        return False  # the plain way serves
    if device_type == "cpu":
        return torch._C._dispatch_has_kernel_for_dispatch_key("bitsandbytes::dequantize_4bit", "CPU")
    return torch._C._dispatch_has_kernel_for_dispatch_key("bitsandbytes::dequantize_4bit.out", "CUDA")


class _Call(ctypes.Structure):
    """struct nf4 of native/nf4.c."""

    _fields_ = fields(
        "threads bf16 rows columns *out out_t *packed *absmax *table bits block *nested *offset *values nested_block"
    )


def dequantize_nf4_native(
    packed: Tensor,
    absmax: Tensor,
    block_size: int,
    out: Tensor,
    nested: Nested | None = None,
    levels: Table = NF4_TABLE,
) -> bool:
    """Fills `out` (O, I), rows at any distance, in one compiled pass; False, with `out` untouched, where it cannot."""
    library, blocks = native_for(out), -(-out.numel() // block_size)
    bits = bits_of(levels)
    if library is None or out.dim() != 2 or not _are_codes(packed, packed_bytes(out.numel(), bits)):
        return False
    if nested is None:
        fits, beside = is_flat_float(absmax, blocks), (0, 0, 0)
    else:
        nested_absmax, offset, values = nested
        fits = _are_codes(absmax, blocks) and is_flat_float(nested_absmax, -(-blocks // NESTED_BLOCK))
        fits = fits and is_flat_float(offset) and is_flat_float(values, 256)
        beside = nested_absmax.data_ptr(), offset.data_ptr(), values.data_ptr()
    if not fits:
        return False
    size = torch.get_num_threads(), out.dtype == torch.bfloat16, *out.shape
    where = out.data_ptr(), out.stride(0), packed.data_ptr(), absmax.data_ptr(), _in_memory(levels).data_ptr()
    call = _Call(*size, *where, bits, block_size, *beside, NESTED_BLOCK)
    library.dequantize_nf4(call, packed, absmax, nested, out)
    return True


def _are_codes(codes: Tensor, count: int) -> bool:
    return codes.dtype == torch.uint8 and codes.is_cpu and codes.is_contiguous() and codes.numel() == count


@cache
def _in_memory(levels: Table) -> Tensor:
    """(16,) float32, in memory for the compiled code, zeros behind fewer levels."""
    with torch.inference_mode(False):
        return torch.tensor((*levels, *[0.0] * (16 - len(levels))), device="cpu")


def triton_takes(packed: Tensor, absmax: Tensor, block_size: int, out: Tensor, nested: Nested | None) -> bool:
    """Is everything on a GPU that runs Triton, and as long as it must be? `out`'s rows may lie apart."""
    blocks = -(-out.numel() // block_size)
    if out.dim() != 2 or block_size < 2 or block_size & (block_size - 1):  # a tile's sides are powers of two
        return False
    beside: list[tuple[Tensor, tuple[int, ...]]] = [(absmax, (blocks,))]
    codes = [(packed, (out.numel() + 1) // 2)]
    if nested is not None:
        beside = list(zip(nested, ((-(-blocks // NESTED_BLOCK),), (), (256,)), strict=True))
        codes.append((absmax, blocks))
    whole = all(c.dtype == torch.uint8 and c.numel() == n and c.is_contiguous() for c, n in codes)
    return whole and all(c.device == out.device for c, _ in codes) and triton_can(out, beside=beside)


def dequantize_nf4(
    packed: Tensor,
    absmax: Tensor,
    block_size: int,
    out: Tensor,
    nested: Nested | None = None,
    levels: Table = NF4_TABLE,
) -> Tensor:
    """Fills `out` (O, I) with the weights of `packed`, the fastest way that can; `absmax` are codes with `nested`."""
    own = levels == NF4_TABLE
    if own and triton_takes(packed, absmax, block_size, out, nested):
        from topcoat.kernels.triton_ops import nf4_dequant as fused

        return fused.dequantize_nf4(packed, absmax, block_size, out, nested)
    if dequantize_nf4_native(packed, absmax, block_size, out, nested, levels):
        return out
    settle()
    if nested is not None:
        absmax = nested_scales(absmax, nested)
    if own and bitsandbytes_can(packed, block_size, out):
        return dequantize_nf4_bitsandbytes(packed, absmax, block_size, out)
    if out.is_contiguous() and bits_of(levels) < 4:
        return _in_pieces(packed, absmax, block_size, out, levels)
    if out.is_contiguous():
        return dequantize_nf4_table(packed, absmax, block_size, out, levels)
    return dequantize_nf4_reference(packed, absmax, block_size, out, levels)
