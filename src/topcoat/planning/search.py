"""Other ways to run the same recipe: the fastest that fits, the next two with what they trade, and the smallest change.

A candidate differs from the recipe in some of: the micro batch, recomputation, the optimizer, answers while evaluating,
the number format, the method, the length of an example. A change weighs what it costs the result: nothing for the micro
batch, recomputation and where moments lie; rounding for 8-bit moments and for number formats; another method and
shorter examples most, which are tried only where nothing else fits. The smallest change is the one of least weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from topcoat.adapters.settings import AdapterConfig, FullConfig, LoraConfig
from topcoat.errors import TopcoatError
from topcoat.planning.devices import DEVICES, Device
from topcoat.planning.estimate import Estimate, counts_for, estimate
from topcoat.planning.possible import require_possible
from topcoat.planning.request import Request
from topcoat.quant.settings import Int8Config, Nf4Config, QuantConfig
from topcoat.training.optimizers.sizes import DEVICES as OPTIMIZER_DEVICES
from topcoat.units import show_bytes

SHORTEST = 128
"""Tokens; examples are not cut below this."""
MOST_TOKENS = 16_384
"""Tokens of a micro batch; beyond it products are no faster."""

_WEIGHTS = {"micro batch": 1, "recompute": 2, "optimizer": 3, "answers": 5, "format": 10, "method": 100, "length": 1000}


@dataclass(frozen=True)
class Candidate:
    """One way to run, and how it differs from the recipe."""

    estimate: Estimate
    changes: tuple[str, ...]
    """As overrides: train.recompute=block."""
    weight: int

    def trade(self, best: Candidate) -> str:
        """What this one costs and saves against `best`."""
        slower = self.estimate.speed.step_seconds[1] / best.estimate.speed.step_seconds[1] - 1
        saved = best.estimate.peak_bytes - self.estimate.peak_bytes
        speed = f"{abs(slower):.0%} {'slower' if slower > 0 else 'faster'}" if abs(slower) >= 0.005 else "as fast"
        return f"{speed}, {show_bytes(abs(saved))} {'less' if saved >= 0 else 'more'} memory"


@dataclass(frozen=True)
class Found:
    """What a search gave."""

    fastest: tuple[Candidate, ...]
    """The fastest plan that fits and at most two others; empty where nothing fits."""
    smallest_change: Candidate | None
    """Of those that fit, the one nearest to the recipe; None where the recipe fits or nothing does."""
    smallest: Candidate
    """The one that takes least, whether it fits or not."""

    @property
    def larger_device(self) -> Device | None:
        """Where nothing fits, the device with the least memory that is enough for the smallest way."""
        if self.fastest:
            return None
        enough = [device for device in DEVICES if device.memory_bytes >= self.smallest.estimate.peak_bytes]
        return min(enough, key=lambda device: device.memory_bytes, default=None)


def search(request: Request) -> Found:
    """Try the combinations that the device can run: other methods and lengths only where nothing else fits."""
    as_written = Candidate(estimate(request), (), 0)
    candidates: list[Candidate] = [as_written]
    fitting: list[Candidate] = []
    own, answers, lengths = _methods(request), [request.answered], _lengths(request)
    stages = ((own[:1], answers, lengths[:1]), (own[:1], [0], lengths[:1]), (own, [0], lengths[:1]))
    for methods, answered, some in (*stages, (own[-1:], [0], lengths[1:])):
        candidates += _candidates(request, methods, answered, some)
        fitting = [candidate for candidate in candidates if candidate.estimate.fits]
        if fitting:
            break
    ranked = sorted(fitting, key=lambda c: (c.estimate.speed.step_seconds[1], c.weight, c.estimate.peak_bytes))
    nearest = min(fitting, key=lambda c: (c.weight, c.estimate.speed.step_seconds[1]), default=None)
    return Found(
        fastest=_different(ranked),
        smallest_change=None if as_written.estimate.fits else nearest,
        smallest=min(candidates, key=lambda c: c.estimate.peak_bytes),
    )


def _different(ranked: list[Candidate]) -> tuple[Candidate, ...]:
    """The first, and the next two that differ from those before in more than the micro batch."""
    chosen: list[Candidate] = []
    seen: set[tuple[str, ...]] = set()
    for candidate in ranked:
        kind = tuple(change for change in candidate.changes if not change.startswith("train.micro_batch_tokens"))
        if kind not in seen:
            seen.add(kind)
            chosen.append(candidate)
        if len(chosen) == 3:
            break
    return tuple(chosen)


def _candidates(
    request: Request, methods: list[AdapterConfig], answers: list[int], lengths: list[int]
) -> Iterator[Candidate]:
    """Every combination but the request itself; with shorter examples only the smallest one of each."""
    for method in methods:
        for format in _formats(request, method):
            stored = replace(request, adapter=method, quantization=format)
            counts = counts_for(stored)
            for length, answered in product(lengths, answers):
                short = length < request.max_length
                ways = product(
                    _optimizers(request, method),
                    [length] if short else _micro_batches(request, length),
                    ["block"] if short else _recomputes(request),
                )
                for optimizer, micro, recompute in ways:
                    other = replace(stored, max_length=length, answered=answered).with_train(
                        optimizer=optimizer, micro_batch_tokens=micro, recompute=recompute
                    )
                    changes = _changes(request, other)
                    if changes:
                        weight = sum(_WEIGHTS[name] for name, _ in changes)
                        yield Candidate(estimate(other, counts), tuple(text for _, text in changes), weight)


def _changes(before: Request, after: Request) -> list[tuple[str, str]]:
    """(dimension, override that writes it) for each in which they differ."""
    old, new = before.train, after.train
    options = (
        ("method", f"adapter.method={after.adapter.method}", after.adapter != before.adapter),
        ("length", f"data.max_length={after.max_length}", after.max_length != before.max_length),
        ("format", _format_text(after.quantization), after.quantization != before.quantization),
        ("optimizer", f"train.optimizer={new.optimizer}", new.optimizer != old.optimizer),
        (
            "micro batch",
            f"train.micro_batch_tokens={new.micro_batch_tokens}",
            new.micro_batch_tokens != old.micro_batch_tokens,
        ),
        ("recompute", f"train.recompute={new.recompute}", new.recompute != old.recompute),
        ("answers", "evaluate.metrics=[perplexity] evaluate.samples=0", after.answered != before.answered),
    )
    return [(name, text) for name, text, differs in options if differs]


def _format_text(format: QuantConfig | None) -> str:
    return "model.quantization=null" if format is None else f"model.quantization.format={format.format}"


def _methods(request: Request) -> list[AdapterConfig]:
    if isinstance(request.adapter, FullConfig):
        return [request.adapter, LoraConfig()]
    return [request.adapter]


def _formats(request: Request, method: AdapterConfig) -> list[QuantConfig | None]:
    if isinstance(method, FullConfig):
        return [None]
    options = [request.quantization, None, _kept(request, Int8Config), _kept(request, Nf4Config)]
    distinct = list({str(option): option for option in options}.values())
    return [option for option in distinct if option == request.quantization or _possible(request, method, option)]


def _kept(request: Request, kind: type[QuantConfig]) -> QuantConfig:
    """The format `kind` with the settings that it shares with the recipe's own: its override changes the name alone."""
    stored = request.quantization
    own = {} if stored is None else stored.model_dump(exclude_unset=True, exclude={"format"})
    return kind.model_validate({name: value for name, value in own.items() if name in kind.model_fields})


def _possible(request: Request, method: AdapterConfig, option: QuantConfig | None) -> bool:
    try:
        require_possible(request.architecture, method, option, labelled=request.outputs is not None)
    except TopcoatError:
        return False
    return True


def _optimizers(request: Request, method: AdapterConfig) -> list[str]:
    """The recipe's own, and those with smaller moments on this device; only whole models gain from them."""
    own = request.train.optimizer
    if not isinstance(method, FullConfig):
        return [own]
    return list(
        dict.fromkeys([own, *(name for name, kinds in OPTIMIZER_DEVICES.items() if request.device.kind in kinds)])
    )


def _micro_batches(request: Request, length: int) -> list[int | str]:
    own = request.train.micro_batch_tokens
    powers = [tokens for tokens in (128, 256, 512, 1024, 2048, 4096, 8192, MOST_TOKENS) if tokens >= length]
    return list(dict.fromkeys([own, length, *powers]))


def _recomputes(request: Request) -> list[str]:
    """Where nothing is asked for, auto has already chosen the best; "block" is for transformers' own layers."""
    own = request.train.recompute
    return list(dict.fromkeys([own, "auto", "block"]))


def _lengths(request: Request) -> list[int]:
    lengths, length = [request.max_length], request.max_length // 2
    while length >= SHORTEST:
        lengths.append(length)
        length //= 2
    return lengths
