"""Rounding by calibration, one decoder block at a time: what GPTQ needs of a model that need not fit into memory.

For block k, with the rows' hidden states h as the blocks below left them:

    read its weights;  run the rows through it and sum H = sum x xᵀ of every linear's input x (I,)
    round its linears by H (quant/gptq.py);  run the rows again, through the rounded block: the next h;  forget it

So a linear is rounded against the inputs it will have, errors of the blocks below included. At any moment there are one
block, its sums (one for linears that read the same input) and the rows' hidden states. The model's own forward calls
the block, so masks and rotary tables are its own; the blocks below it pass what they are given.

Frantar et al. 2022, arXiv:2210.17323, section 3 and their code, which goes block by block as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from topcoat.errors import Problem, TopcoatError
from topcoat.model.attention import attention_inputs
from topcoat.model.families import family_of
from topcoat.model.fill import assign, block_linears, formats_of, match_all, named_outside, read_dense
from topcoat.model.load import embedding_rows, resolve_attention, resolve_compute_dtype, resolve_device
from topcoat.model.settings import ModelSettings
from topcoat.model.skeleton import build_skeleton, check_sizes
from topcoat.model.source import Source
from topcoat.quant.base import QuantFormat, QuantizedWeight
from topcoat.quant.gptq import gptq
from topcoat.quant.gptq_integers import GptqIntegers
from topcoat.quant.grouped import Grouped
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import QuantConfig, read_config, rounds_by_rows

ROW_TOKENS = 2048
"""Tokens of a row that are looked at: the length that the paper calibrates with."""


@dataclass(frozen=True)
class Rounded:
    """One linear, rounded; errors are those of its outputs on the rows, as a share of their norm."""

    path: str
    weight: QuantizedWeight
    config: QuantConfig
    error: float
    nearest_error: float
    """Of rounding to the nearest level in the same format."""


class _Reached(Exception):
    """Carries a block's output out of the model's forward."""

    def __init__(self, output: Any) -> None:
        self.output = output


def rounded_linears(
    source: Source,
    settings: ModelSettings,
    rows: Sequence[Sequence[int]],
    advance: Callable[[int], None] = lambda block: None,
) -> Iterator[Rounded]:
    """Every linear of `settings.quantization` that is rounded by rows, block by block; `rows` are token ids.

    `advance` is told how many blocks are done. Raises TopcoatError for settings that calibration cannot serve.
    """
    config = settings.quantization
    assert config is not None
    _check_asked(config, rows)
    device = resolve_device(settings.device)
    dtype = resolve_compute_dtype(settings.compute_dtype, device)
    check_sizes(source.config, [tensor.shape for tensor in source.tensors()], str(source.path))
    model = build_skeleton(source.config, dtype, resolve_attention(settings, source.config))
    _check_ids(rows, embedding_rows(model))
    walk = _Walk(model, source, config, dtype, device, rows)
    for block in range(len(walk.blocks)):
        yield from walk.step(block)
        advance(block + 1)


def few_tokens(source: Source, rows: Sequence[Sequence[int]]) -> str | None:
    """What to say where the rows have fewer tokens than a linear has inputs; None where they have enough.

    The sums then say nothing of most directions: the rounding fits the rows, and may be worse than none elsewhere.
    """
    tokens = sum(min(len(row), ROW_TOKENS) for row in rows)
    widest = max(tensor.shape[1] for tensor in source.tensors() if len(tensor.shape) == 2)
    if tokens >= widest:
        return None
    return (
        f"the calibration rows have {tokens:,} tokens, and the widest linear {widest:,} inputs: weights are fitted to "
        "these rows, and may be worse than rounded to the nearest elsewhere; use more rows"
    )


def _check_asked(config: QuantConfig, rows: Sequence[Sequence[int]]) -> None:
    if not any(rows):
        raise TopcoatError(
            "there are no rows to calibrate on", where="calibration rows", fix="name a file that has some"
        )
    for pattern, value in config.overrides.items():
        if pattern.rsplit(".", 1)[-1] in ("lm_head", "embed_tokens", "embed_in", "embed_out") and rounds_by_rows(
            read_config(value)
        ):
            raise TopcoatError(
                f"{pattern} cannot be rounded by calibration: only linears inside the blocks are",
                where="model.quantization.overrides",
                fix="write rounding: nearest or hqq for it",
            )


def _check_ids(rows: Sequence[Sequence[int]], vocabulary: int) -> None:
    largest = max(max(row, default=0) for row in rows)
    if largest >= vocabulary:
        raise TopcoatError(
            f"the rows have the token {largest}, and the model's embedding ends at {vocabulary - 1}",
            where="calibration rows",
            fix="use the tokenizer that belongs to this checkpoint",
        )


class _Walk:
    """One pass from the bottom block to the top one."""

    def __init__(
        self,
        model: PreTrainedModel,
        source: Source,
        config: QuantConfig,
        dtype: torch.dtype,
        device: torch.device,
        rows: Sequence[Sequence[int]],
    ) -> None:
        self.model, self.dtype, self.device = model, dtype, device
        family = family_of(model)
        self.prefix, self.decoder = family.blocks, model.get_submodule(family.decoder)
        blocks = model.get_submodule(family.blocks)
        assert isinstance(blocks, nn.ModuleList)
        self.blocks = blocks
        self.places = match_all(model, source)
        outside = named_outside(model, config, self.places)
        self.formats = formats_of({**block_linears(model), **outside}, config, self.places, outside)
        for place in self.places:
            name = place.names[0]
            is_head = bool(family.head) and name.startswith(f"{family.head}.")
            if not name.startswith(f"{self.prefix}.") and not is_head and not place.is_copy:
                assign(model, place, read_dense(place.stored, place.stored.raw(), dtype).to(device))
        for name, buffer in self.decoder.named_buffers():
            if buffer.device != device and buffer.device.type != "meta":
                path, _, last = name.rpartition(".")
                self.decoder.get_submodule(path)._buffers[last] = buffer.to(device)
        self.rows = [torch.tensor([row[:ROW_TOKENS]]) for row in rows if row]
        self.hidden: list[Tensor | None] = [None] * len(self.rows)  # on the host: (1, T, D) each

    @torch.no_grad()
    def step(self, number: int) -> Iterator[Rounded]:
        """Round the linears of block `number`, and leave `hidden` as the block above will read it."""
        block, start = self.blocks[number], f"{self.prefix}.{number}."
        weights = self._read(start)
        mine = {path: linear for path, linear in block_linears(self.model).items() if path.startswith(start)}
        asked = {path: linear for path, linear in mine.items() if rounds_by_rows(self.formats[path].config)}
        with _Sums(asked) as sums:
            if asked:
                self._run(number)
        for path, linear in mine.items():
            format, weight = self.formats[path], weights.pop(path).to(self.device)
            if path in asked:
                found = _round(path, weight, sums.of(path), format)
                stored = found.weight
                yield found
            else:
                stored = format.quantize(weight)
            bias = None if linear.bias is None else linear.bias.data
            self.model.set_submodule(path, FrozenLinear(stored, format, bias, self.dtype).eval())
        outputs = self._run(number)
        self.hidden = [_states(output).to("cpu") for output in outputs]
        was_tuple = isinstance(outputs[0], tuple)
        block.to("meta")
        block.forward = lambda x, *args, **kwargs: (x,) if was_tuple else x  # from now on it passes what it is given

    def _read(self, start: str) -> dict[str, Tensor]:
        """Fill the block whose names begin with `start`; its linears' weights also as the file has them."""
        weights = {}
        for place in self.places:
            name = place.names[0]
            if not name.startswith(start):
                continue
            raw = place.stored.raw()
            values = read_dense(place.stored, raw, None)
            if name.removesuffix(".weight") in self.formats and name.endswith(".weight"):
                weights[name.removesuffix(".weight")] = values
            assign(self.model, place, values.to(self.device, self.dtype))
        return weights

    def _run(self, number: int) -> list[Any]:
        """The block's outputs for every row, whose hidden states it is given in place of what passed the others."""
        block = self.blocks[number]
        own, outputs = block.forward, []
        try:
            for ids, hidden in zip(self.rows, self.hidden, strict=True):

                def forward(x: Tensor, *args: Any, hidden: Tensor | None = hidden, **kwargs: Any) -> Any:
                    raise _Reached(own(x if hidden is None else hidden.to(self.device), *args, **kwargs))

                block.forward = forward
                ids = ids.to(self.device)
                places = torch.arange(ids.shape[1], device=self.device)[None]
                inputs = attention_inputs(self.model, ids, places, [(0, ids.shape[1])])
                try:
                    self.decoder(**inputs, use_cache=False)
                except _Reached as reached:
                    outputs.append(reached.output)
        finally:
            block.forward = own
        return outputs


class _Sums:
    """Inside, every linear's inputs are summed as H = sum x xᵀ, once for those that read one tensor."""

    def __init__(self, linears: dict[str, nn.Linear]) -> None:
        self._linears, self._sums, self._same = linears, dict[str, Tensor](), dict[str, str]()
        self._last: tuple[Tensor | None, str] = (None, "")

    def __enter__(self) -> _Sums:
        self._handles = [
            linear.register_forward_pre_hook(self._hook(path, linear)) for path, linear in self._linears.items()
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._last = (None, "")

    def of(self, path: str) -> Tensor:
        """(I, I) float32. Raises TopcoatError for a linear that no row has reached."""
        try:
            return self._sums[self._same[path]]
        except KeyError:
            raise TopcoatError(
                f"no calibration row reached {path}",
                where="model.quantization.rounding",
                fix="write rounding: nearest for it, by model.quantization.overrides",
            ) from None

    def _hook(self, path: str, linear: nn.Linear) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x, owner = inputs[0], self._same.get(path)
            if owner is None:  # the first row decides which linears share
                owner = self._same[path] = self._last[1] if self._last[0] is x else path
            self._last = (x, owner)
            if owner != path:
                return
            flat = x.flatten(0, -2).float()  # (T, I)
            if path not in self._sums:
                self._sums[path] = torch.zeros(linear.in_features, linear.in_features, device=x.device)
            self._sums[path].addmm_(flat.T, flat)

        return add


def _round(path: str, weight: Tensor, sums: Tensor, format: QuantFormat) -> Rounded:
    """One linear, weight (O, I), rounded by sums (I, I), and its error beside that of rounding to the nearest."""
    assert isinstance(format, Grouped | GptqIntegers)
    try:
        found = gptq(weight, sums, format)
    except TopcoatError as error:
        raise TopcoatError.gather([Problem(f"{path}: {p.what}", p.where, p.fix) for p in error.problems]) from error
    plain = type(format)(format.config.model_copy(update={"rounding": "nearest"})).quantize(weight)
    size = _norm(weight.float(), sums)
    errors = [_norm(format.dequantize(q, torch.float32) - weight.float(), sums) for q in (found, plain)]
    return Rounded(path, found, format.config, *((error / size if size else 0.0) for error in errors))


def _norm(weight: Tensor, sums: Tensor) -> float:
    """The norm of the outputs W x over all rows, from H: sqrt(tr(W H Wᵀ))."""
    return float((weight @ sums).mul_(weight).sum(dtype=torch.float64).clamp(min=0).sqrt())


def _states(output: Any) -> Tensor:
    """A block's hidden states: what it returns, or the first of it."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
