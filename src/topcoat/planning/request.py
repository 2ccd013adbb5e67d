"""What a plan is made for: the model's shapes, the settings that decide size and speed, the data, and the device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from topcoat.adapters.settings import AdapterConfig, FullConfig
from topcoat.kernels.row_counts import last_rows
from topcoat.planning.architecture import Architecture
from topcoat.planning.devices import Device
from topcoat.planning.micro_batch import micro_batch_tokens
from topcoat.quant.settings import DenseConfig, QuantConfig
from topcoat.training.settings import TrainSettings


@dataclass(frozen=True)
class Request:
    """One way to run: everything that memory and time depend on."""

    architecture: Architecture
    adapter: AdapterConfig
    quantization: QuantConfig | None
    """None stores the frozen weights in the compute dtype."""
    train: TrainSettings
    compute_dtype: str
    """bf16, fp16 or fp32."""
    max_length: int
    device: Device
    budget_bytes: int
    rows: int | None = None
    """Training rows; None where they are not known."""
    mean_tokens: float | None = None
    longest_tokens: int | None = None
    answer_tokens: int = 256
    """evaluate.max_new_tokens."""
    answered: int = 32
    """Prompts that are answered at once; 0 without validation rows."""
    labelled: float | None = None
    """Share of the tokens that are trained, where the rows say."""
    micro_step: tuple[float, int] | None = None
    """Seconds and positions of a micro-step that was measured; the roofline's where there is none."""
    residual_bytes: int = 0
    """What probes on this device found plans to miss."""
    residual_note: str = ""
    attention_by_hand: bool = True
    """False where the recipe asks for another attention than the hand-written blocks compute."""

    packing: bool = True
    """False where batches are padded."""
    outputs: int | None = None
    """Of a head that learns labels or numbers of whole rows; None where tokens are predicted."""

    @property
    def element_bytes(self) -> int:
        """e, of the compute dtype."""
        return 4 if self.compute_dtype == "fp32" else 2

    @property
    def stored(self) -> QuantConfig:
        """How the frozen linears are stored."""
        if isinstance(self.adapter, FullConfig):
            return DenseConfig(format="fp32")
        return self.quantization or DenseConfig.model_validate({"format": self.compute_dtype})

    @cached_property
    def tokens(self) -> int:
        """T: positions of the largest micro batch."""
        longest = self.longest + self.adapter.virtual_tokens
        budget = max(micro_batch_tokens(self.train.micro_batch_tokens, self.max_length), longest)
        if self.train.batch_tokens is not None:
            return min(budget, max(round(self.train.batch_tokens * self.positions_a_token), longest))
        return min(budget, self.train.batch_size * longest)

    @property
    def labelled_tokens(self) -> int:
        """Positions of the largest micro batch that are trained."""
        return math.ceil((self.labelled or 1.0) * self.tokens)

    @property
    def last_rows(self) -> int:
        """N: those that the last block computes."""
        return last_rows(self.labelled_tokens, self.tokens)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return min(self.max_length, self.longest_tokens or self.max_length)

    @property
    def row_tokens(self) -> float:
        """Tokens of a mean row."""
        return min(float(self.max_length), self.mean_tokens or self.max_length)

    @property
    def positions_a_token(self) -> float:
        """Positions computed for one token of the data: more than 1 where virtual tokens stand before each row."""
        return 1 + self.adapter.virtual_tokens / self.row_tokens

    @property
    def step_tokens(self) -> float:
        """Tokens of an optimizer step."""
        return float(self.train.batch_tokens or self.train.batch_size * self.row_tokens)

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the run: max_steps, else as many as the epochs have; None where the rows are not known."""
        if self.train.max_steps is not None or self.rows is None:
            return self.train.max_steps
        per_epoch = max(1.0, self.rows * self.row_tokens / self.step_tokens)
        return max(1, round(self.train.epochs * per_epoch))

    @property
    def micro_batches(self) -> float | None:
        """Micro batches of the run's steps; None where their number is not known."""
        if self.steps is None:
            return None
        return self.steps * max(1.0, self.step_tokens * self.positions_a_token / self.tokens)

    def with_train(self, **changes: Any) -> Request:
        """The same with other settings of the loop."""
        return replace(self, train=self.train.model_copy(update=changes))
