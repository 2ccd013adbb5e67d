"""Which path computes a run: the hand-written blocks with a recompute policy for each layer, or the plain one.

The fast path is taken where it can be, and only after it has given, on one real example, the hidden states that
transformers' own layers give. The plan says which path a run took and, for the plain one, why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from topcoat.adapters.attach import Adapters
from topcoat.adapters.base import Adapter
from topcoat.adapters.settings import FullConfig
from topcoat.errors import TopcoatError
from topcoat.kernels.offload import make_shelf
from topcoat.kernels.recompute import Policy, summary
from topcoat.model.fuse import FusedModel, block_sizes, fuse
from topcoat.model.load import Base
from topcoat.model.parity import fused_difference, tolerance
from topcoat.planning.activations import Ranks
from topcoat.planning.counts import BlockCounts
from topcoat.planning.sizes import fitting_policies
from topcoat.training.on_device import offload_problem
from topcoat.training.settings import Recompute


@dataclass(frozen=True)
class Engine:
    """How forward and backward are computed."""

    fused: FusedModel | None
    policies: tuple[Policy, ...] = ()
    """One a layer, from the bottom up; empty on the plain path."""
    checkpointing: bool = False
    """The plain path recomputes whole blocks."""
    reason: str = ""
    """Why the plain path was taken."""
    graphs: bool = False
    """Micro batches are captured as CUDA graphs (`runs/graphs.py`)."""

    def describe(self) -> str:
        """One line for people."""
        if self.fused is not None:
            as_graphs = ", CUDA graphs" if self.graphs else ""
            return f"hand-written blocks, recompute {summary(self.policies)}{as_graphs}"
        again = ", blocks recomputed" if self.checkpointing else ""
        return f"transformers' layers{again} ({self.reason})"


def choose_engine(
    base: Base,
    adapters: Adapters,
    recompute: Recompute,
    ids: Sequence[int],
    tokens: int,
    budget_bytes: float | None,
    rows: int | None = None,
) -> Engine:
    """The path for micro batches of `tokens`, of which the last block computes `rows` (None: all); `ids` is one real
    example.

    `budget_bytes` is what activations may take, None where that cannot be told: nothing is recomputed then.

    Raises:
        TopcoatError: the recompute policy does not exist on this device.
    """
    problem = offload_problem(recompute, base.device.type)
    if problem is not None:
        raise TopcoatError.gather([problem])
    policies = _policies(base, adapters, recompute, tokens, tokens if rows is None else rows, budget_bytes)
    if isinstance(adapters.config, FullConfig):
        return _plain(recompute, "full fine-tuning trains the layers themselves")
    if adapters.prompt is not None:
        return _plain(recompute, "virtual tokens stand before every example")
    shelf = partial(make_shelf, base.device)
    fused = fuse(base.model, policies, shelf) if policies else "its blocks are not among those written by hand"
    if isinstance(fused, str):
        return _plain(recompute, fused)
    difference, most = fused_difference(fused, ids), tolerance(base.compute_dtype)
    if not difference <= most:
        return _plain(
            recompute, f"the hand-written blocks differ from them by {difference:.1e}, {most:.0e} is rounding"
        )
    return Engine(fused, tuple(policies))


def _policies(
    base: Base, adapters: Adapters, recompute: Recompute, tokens: int, rows: int, budget_bytes: float | None
) -> list[Policy]:
    sizes = block_sizes(base.model)
    if sizes is None:
        return []
    if recompute != "auto":
        return [recompute] * len(sizes)
    rank = max((_rank(layer) for layer in adapters.layers.values()), default=0)
    blocks = BlockCounts(tuple(sizes), (Ranks.of_rank(rank),) * len(sizes), stacked=0)
    on_gpu = base.device.type == "cuda"
    return fitting_policies(blocks, tokens, rows, budget_bytes, base.compute_dtype.itemsize, on_gpu)


def _rank(layer: Adapter) -> int:
    """Rank of all terms beside the base; 0 where it is no sum of such terms."""
    terms = layer.low_rank()
    return 0 if isinstance(terms, str) else sum(len(term.lora_A) for term in terms)


def _plain(recompute: Recompute, reason: str) -> Engine:
    return Engine(None, checkpointing=recompute not in ("auto", "none"), reason=reason)
