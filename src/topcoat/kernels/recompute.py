"""What a block keeps for its backward and what it computes again: one policy a layer, chosen by a memory budget.

    policy    kept beside x, the block's input                computed again in the backward
    none      q, k, v, attention output, x2, gate and up      nothing but norms, rotations and activations
    mlp       q, k, v, attention output, x2                   gate and up
    qkv       attention output, x2                            also q, k, v
    block     nothing                                         everything but the down projection
    offload   nothing; x itself waits in host memory          as block

x2 is the input of the MLP half. Every product of a block costs the same number of operations per byte it frees (2 D for
one bf16 number), so the cheapest set within a budget is found greedily. Bottom layers give first: the peak stands in
the backward of the top layer, and what a bottom layer rebuilds appears when the layers above have freed theirs.

No tensors here: the planner reads this file too. Design and counts: engine study, section 2.4 (Chen et al. 2016,
arXiv:1604.06174, for recomputation itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

Policy = Literal["none", "mlp", "qkv", "block", "offload"]

LADDER: tuple[Policy, ...] = ("none", "mlp", "qkv", "block")
"""From most memory to least, and from no work to most."""
LADDER_WITH_HOST: tuple[Policy, ...] = (*LADDER, "offload")
"""The same on a GPU, beside which there is other memory."""

KEPT: dict[Policy, frozenset[str]] = {
    "none": frozenset({"qkv", "attended", "lse", "x2", "gate_up", "mixed", "projected"}),
    "mlp": frozenset({"qkv", "attended", "lse", "x2", "mixed", "projected"}),
    "qkv": frozenset({"attended", "lse", "x2", "mixed", "projected"}),
    "block": frozenset({"projected"}),
    "offload": frozenset({"projected"}),
}
"""Names of the buffers that stay until the backward. `mixed` and `projected` (the outputs of the attention and the MLP
before their post-norms) exist in families with post-norms only; the MLP's is kept always, so that no policy ever has
to repeat the down projection."""


@dataclass(frozen=True)
class BlockSizes:
    """Widths of one decoder block, in numbers a token."""

    hidden: int
    query: int
    """heads * head width."""
    key_value: int
    """Key heads * head width."""
    mlp: int
    heads: int
    post_norms: bool = False
    head_norms: bool = False

    def kept(self, policy: Policy) -> int:
        """Numbers of the compute dtype that one token keeps, the block's input included (none for offload)."""
        widths = {"qkv": self.query + 2 * self.key_value, "attended": self.query}
        own = 0 if policy == "offload" else self.hidden
        before = sum(width for name, width in widths.items() if name in KEPT[policy])
        return own + before + self.kept_after_attention(policy)

    def kept_after_attention(self, policy: Policy) -> int:
        """Those of them that only the rows with a label keep in the last block."""
        normed = self.hidden if self.post_norms else 0
        widths = {"x2": self.hidden, "gate_up": 2 * self.mlp, "mixed": normed, "projected": normed}
        return sum(width for name, width in widths.items() if name in KEPT[policy])

    def log_sum_exps(self, policy: Policy) -> int:
        """float32 numbers that one token keeps for the attention's backward."""
        return self.heads if "lse" in KEPT[policy] else 0

    def token_bytes(self, policy: Policy, element_bytes: int = 2) -> int:
        """Bytes one token of one layer keeps."""
        return _token_bytes(self, policy, element_bytes)

    def recomputed(self, policy: Policy) -> int:
        """Multiply-adds of products that the backward repeats for one token; attention's own grow with length."""
        again = 0
        if policy != "none":
            again += 2 * self.hidden * self.mlp
        if policy in ("qkv", "block", "offload"):
            again += self.hidden * (self.query + 2 * self.key_value)
        if policy in ("block", "offload"):
            again += self.hidden * self.query
        return again


@cache  # a search of plans asks for the same few a hundred thousand times
def _token_bytes(size: BlockSizes, policy: Policy, element_bytes: int) -> int:
    return size.kept(policy) * element_bytes + 4 * size.log_sum_exps(policy)


def held_bytes(layers: Sequence[BlockSizes], policies: Sequence[Policy], tokens: int, element_bytes: int = 2) -> int:
    """Bytes that all layers keep for `tokens`."""
    return tokens * sum(layer.token_bytes(p, element_bytes) for layer, p in zip(layers, policies, strict=True))


def choose(
    layers: Sequence[BlockSizes],
    tokens: int,
    budget_bytes: float,
    element_bytes: int = 2,
    ladder: Sequence[Policy] = LADDER,
) -> list[Policy]:
    """The cheapest policies, one a layer from the bottom up, whose kept bytes for `tokens` fit `budget_bytes`.

    Layers move down the ladder one rung at a time, bottom layers first; where not even its last rung everywhere fits,
    that is what comes back, and the caller's bill says by how much it does not.
    """
    policies: list[Policy] = [ladder[0]] * len(layers)
    held = held_bytes(layers, policies, tokens, element_bytes)
    for rung in ladder[1:]:
        for at, layer in enumerate(layers):
            if held <= budget_bytes:
                return policies
            held -= (layer.token_bytes(policies[at], element_bytes) - layer.token_bytes(rung, element_bytes)) * tokens
            policies[at] = rung
    return policies


def summary(policies: Sequence[Policy]) -> str:
    """Runs of equal policies in words: "block in layers 0-11, none in 12-29"."""
    runs: list[tuple[Policy, int, int]] = []
    for at, policy in enumerate(policies):
        if runs and runs[-1][0] == policy:
            runs[-1] = (policy, runs[-1][1], at)
        else:
            runs.append((policy, at, at))
    if len(runs) == 1:
        return f"{runs[0][0]} in all {len(policies)} layers"
    parts = [f"{policy} in {first}-{last}" if first < last else f"{policy} in {first}" for policy, first, last in runs]
    return ", ".join(parts) + " (layers from the bottom)"
