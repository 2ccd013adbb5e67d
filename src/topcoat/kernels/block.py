"""One decoder block, whole: forward and backward by hand.

    n1 = norm1(x);   [q|k|v] = n1 Wqkvᵀ (+ low rank);   q, k normed a head (Qwen 3, Gemma 3) and rotated
    o = attention(q, k, v);   a = o Woᵀ;   x2 = x + a              (Gemma: x + post1(a))
    n2 = norm2(x2);   [e|g] = n2 Wguᵀ;   z = (act(e) * g) Wdᵀ;   y = x2 + z    (Gemma: x2 + post2(z))

Norms, rotations and activations are cheap and never kept; which products are kept is the layer's recompute policy
(`recompute.py`), and what was dropped is computed again by the same functions, so all policies give the same bits. The
backward follows the order of least memory: the MLP half first, its gradients written over the values they replace.

In the last block only the rows that carry a label are needed after attention; with `rows` given, the output projection
and the MLP run on those rows alone, which is exact because nothing later mixes rows.

Sources: the backward of LoRA, arXiv:2106.09685; gated MLP, Shazeer 2020, arXiv:2002.05202; rotary positions,
Su et al. 2021, arXiv:2104.09864; root mean square norm, Zhang and Sennrich 2019, arXiv:1910.07467.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from topcoat.kernels.arena import Arena
from topcoat.kernels.attention import Shape, attention_backward, attention_forward
from topcoat.kernels.documents import Layout
from topcoat.kernels.gated import Activation
from topcoat.kernels.native.calls import settle
from topcoat.kernels.product import Gating
from topcoat.kernels.projection import Projection
from topcoat.kernels.recompute import KEPT, Policy
from topcoat.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_backward
from topcoat.kernels.rope import rope_

SEEDS_A_BLOCK = 1 << 12  # seeds one block may use: four projections of up to 1,024 adapters


@dataclass(frozen=True)
class Norm:
    """n = x / rms(x) * weight."""

    weight: Tensor  # (D,) float32, any offset added already
    eps: float


@dataclass(frozen=True)
class Block:
    """The frozen parts and the adapters of one block."""

    norm1: Norm
    norm2: Norm
    qkv: Projection
    o: Projection
    gate_up: Projection
    down: Projection
    heads: int
    kv_heads: int
    head_dim: int
    attention: Shape
    activation: Activation
    rotary: str | None
    """Which table of angles q and k turn by; None for a layer without positions."""
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    post1: Norm | None = None
    post2: Norm | None = None

    @property
    def projections(self) -> tuple[Projection, Projection, Projection, Projection]:
        """In the order in which the backward's gradients come: q|k|v, o, gate|up, down."""
        return self.qkv, self.o, self.gate_up, self.down

    @property
    def parameters(self) -> list[Tensor]:
        """Everything that trains in this block."""
        return [p for projection in self.projections for p in projection.parameters]


@dataclass(frozen=True)
class Batch:
    """What all blocks know of the batch they compute."""

    layout: Layout
    angles: Mapping[str, tuple[Tensor, Tensor]]
    """cos and sin (T, P) float32 by name of the table."""
    seed: int | None = None
    """Dropout masks follow from it; None drops nothing."""
    adapted: bool = True
    """False computes the base alone."""


@dataclass
class Pass:
    """One block in one batch: where its buffers lie, and what its forward left for its backward."""

    index: int
    block: Block
    policy: Policy
    batch: Batch
    arena: Arena
    rows: Tensor | None = None
    """Rows (N,) that the MLP half computes; None for all."""
    training: bool = True
    objects: dict[str, Any] = field(default_factory=dict)

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor `name`: this layer's own if the policy keeps it, else one that all layers share."""
        own = self.training and (name in KEPT[self.policy] or name.startswith("h."))
        return self.arena.take(f"{self.index}.{name}" if own else name, shape, dtype)

    def project(
        self,
        name: str,
        x: Tensor,
        out: Tensor,
        *,
        again: bool = False,
        add: Tensor | None = None,
        gating: Gating | None = None,
    ) -> Tensor:
        """out = the projection `name` of x, plus `add`, then `gating`; `again` reads the h that the forward kept."""
        projection, h = self._projection(name, x)
        seed, adapted = self.seed(name), self.batch.adapted
        return projection.forward(x, out, h, adapted=adapted, have_h=again, seed=seed, add=add, gating=gating)

    def backward(
        self, name: str, g: Tensor, dx: Tensor | None, x: Tensor, gating: Gating | None = None
    ) -> list[Tensor | None]:
        """g (N, O), x (N, I) -> gradients of what trains in the projection `name`; fills dx (N, I)."""
        projection, h = self._projection(name, x)
        return projection.backward(g, dx, x, h, self.arena, self.seed(name), gating)

    def _projection(self, name: str, x: Tensor) -> tuple[Projection, Tensor | None]:
        """The projection `name`, and where its h (T, R) lies for an x (T, I)."""
        projection: Projection = getattr(self.block, name)
        return projection, self.buffer(f"h.{name}", (len(x), projection.rank), x.dtype) if projection.rank else None

    def seed(self, name: str) -> int | None:
        """The seed of a projection's dropout masks."""
        if self.batch.seed is None:
            return None
        place = ("qkv", "o", "gate_up", "down").index(name)
        return self.batch.seed + SEEDS_A_BLOCK * self.index + SEEDS_A_BLOCK // 4 * place


def block_forward(run: Pass, x: Tensor, out: Tensor) -> Tensor:
    """x (T, D) -> out (N, D), N the rows computed; x must stay as it is until the backward."""
    x2, n2, _ = _attention_half(run, x, again=False)
    gate_up = run.buffer("gate_up", (len(n2), run.block.gate_up.out_features), x.dtype)
    h = run.buffer("dh", (len(n2), run.block.down.in_features), x.dtype)  # (N, F)
    run.project("gate_up", n2, gate_up, gating=Gating(run.block.activation, h))
    post2 = run.block.post2
    if post2 is None:
        run.project("down", h, out, add=x2)
    else:
        z = run.project("down", h, run.buffer("projected", tuple(out.shape), x.dtype))
        normed = rms_norm(z, post2.weight, post2.eps, out=out)[0]
        settle()
        normed.add_(x2)
    if "lse" not in KEPT[run.policy] or not run.training:
        run.objects.clear()
    return out


def block_backward(run: Pass, x: Tensor, dy: Tensor, need_dx: bool) -> tuple[Tensor | None, list[Tensor | None]]:
    """dy (N, D) of the output -> dx (T, D) of the input x (None unless asked for), and gradients of `parameters`.

    dy is overwritten: without `rows` it comes back as dx.
    """
    block = run.block
    need_mixing = need_dx or bool(block.qkv.rank)
    dx2, mlp_grads = _mlp_backward(run, x, dy, need_mixing or bool(block.o.rank))
    if dx2 is None:
        return None, [*_zeros(block.qkv), *_zeros(block.o), *mlp_grads]
    dx, grads = _attention_backward(run, x, dx2, need_dx, need_mixing)
    return dx, [*grads, *mlp_grads]


def _attention_half(run: Pass, x: Tensor, *, again: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x (T, D) -> x2 and n2 (N, D), rstd2 (N,)."""
    n1, _ = rms_norm(x, run.block.norm1.weight, run.block.norm1.eps, out=run.buffer("n", tuple(x.shape), x.dtype))
    q, k, v = _queries(run, n1, again=again)
    attended = run.buffer("attended", (len(x), run.block.o.in_features), x.dtype)
    answer = attended.view(q.shape)
    run.objects["lse"] = attention_forward(q, k, v, run.batch.layout, run.block.attention, answer)
    rows = _rows_of(run, "attended.rows", attended)
    x2 = run.buffer("x2", (len(rows), x.shape[1]), x.dtype)
    post1 = run.block.post1
    if post1 is None:
        run.project("o", rows, x2, again=again)
    else:
        mixed = run.project("o", rows, run.buffer("mixed", tuple(x2.shape), x.dtype), again=again)
        rms_norm(mixed, post1.weight, post1.eps, out=x2)
    n2 = run.buffer("n", tuple(x2.shape), x.dtype)
    norm2 = run.block.norm2
    return x2, *add_rms_norm(_rows_of(run, "x.rows", x), x2, norm2.weight, norm2.eps, out=n2)


def _queries(run: Pass, n1: Tensor, *, again: bool) -> tuple[Tensor, Tensor, Tensor]:
    """n1 (T, D) -> q (T, H, K), k and v (T, G, K) as attention reads them: normed and rotated."""
    qkv = run.project("qkv", n1, run.buffer("qkv", (len(n1), run.block.qkv.out_features), n1.dtype), again=again)
    if run.block.q_norm is None and run.block.rotary is not None:
        rope_(_turning(run.block, qkv), *run.batch.angles[run.block.rotary])
    return _as_attended(run, qkv)


def _as_attended(run: Pass, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v from the kept product. Where it stays as it was (norms a head), the turned copy is made here."""
    block = run.block
    q, k, v = _split(block, qkv)
    if block.q_norm is None or block.k_norm is None:
        return q, k, v
    turned = run.arena.take("turned", (len(qkv), block.heads + block.kv_heads, block.head_dim), qkv.dtype)
    q_out, k_out = turned[:, : block.heads], turned[:, block.heads :]
    rms_norm(q, block.q_norm.weight, block.q_norm.eps, out=q_out)
    rms_norm(k, block.k_norm.weight, block.k_norm.eps, out=k_out)
    if block.rotary is not None:
        rope_(turned, *run.batch.angles[block.rotary])
    return q_out, k_out, v


def _split(block: Block, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(T, (H + 2 G) K) -> views (T, H, K), (T, G, K), (T, G, K)."""
    heads = qkv.view(len(qkv), -1, block.head_dim)
    return heads[:, : block.heads], heads[:, block.heads : -block.kv_heads], heads[:, -block.kv_heads :]


def _turning(block: Block, qkv: Tensor) -> Tensor:
    """The heads of q and k side by side, (T, H + G, K): what turns."""
    return qkv.view(len(qkv), -1, block.head_dim)[:, : block.heads + block.kv_heads]


def _rows_of(run: Pass, name: str, x: Tensor) -> Tensor:
    """The rows of x (T, ...) that the MLP half computes."""
    if run.rows is None:
        return x
    out = run.arena.take(name, (len(run.rows), x.shape[1]), x.dtype)
    settle()
    return torch.index_select(x, 0, run.rows, out=out)


def _mlp_backward(run: Pass, x: Tensor, dy: Tensor, need_dx2: bool) -> tuple[Tensor | None, list[Tensor | None]]:
    """dy (N, D) -> dx2 (N, D), written over dy, and the gradients of gate|up and down."""
    block, dtype, N = run.block, x.dtype, len(dy)
    x2, n2, rstd2, gate_up = _mlp_inputs(run, x, N)
    dz = _through_post_norm(run, block.post2, "projected", dy)
    h = run.arena.take("dh", (N, block.down.in_features), dtype)  # (N, F): first dh, then h
    need_inside = need_dx2 or bool(block.gate_up.rank)
    gating = Gating(block.activation, gate_up, backward=True)
    down = run.backward("down", dz, h if need_inside or block.down.rank else None, h, gating)
    if not need_inside:
        return None, [*_zeros(block.gate_up), *down]
    dn = run.arena.take("dn", (N, x.shape[1]), dtype) if need_dx2 else None
    up = run.backward("gate_up", gate_up, dn, n2)
    if dn is None:
        return None, [*up, *down]
    dx2 = rms_norm_backward(dn, x2, block.norm2.weight, rstd2, residual=dy, out=dy)
    return dx2, [*up, *down]


def _mlp_inputs(run: Pass, x: Tensor, N: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x2, n2 (N, D), rstd2 (N,) and the gate|up product (N, 2 F), kept or computed again."""
    block, kept = run.block, KEPT[run.policy]
    gate_up = run.buffer("gate_up", (N, block.gate_up.out_features), x.dtype)
    if "x2" in kept:
        x2 = run.buffer("x2", (N, x.shape[1]), x.dtype)
        n2, rstd2 = rms_norm(x2, block.norm2.weight, block.norm2.eps, out=run.buffer("n", tuple(x2.shape), x.dtype))
    else:
        x2, n2, rstd2 = _attention_half(run, x, again=True)
    if "gate_up" not in kept:
        run.project("gate_up", n2, gate_up, again=True)
    return x2, n2, rstd2, gate_up


def _attention_backward(
    run: Pass, x: Tensor, dx2: Tensor, need_dx: bool, need_mixing: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """dx2 (N, D) -> dx (T, D), written over dx2 where there are no `rows`, and the gradients of q|k|v and o."""
    block, dtype, T = run.block, x.dtype, len(x)
    da = _through_post_norm(run, block.post1, "mixed", dx2)
    attended = run.buffer("attended", (T, block.o.in_features), dtype)
    d_attended = run.arena.take("do", (len(dx2), block.o.in_features), dtype) if need_mixing else None
    o = run.backward("o", da, d_attended, _rows_of(run, "attended.rows", attended))
    if d_attended is None:
        return None, [*_zeros(block.qkv), *o]
    if run.rows is not None:
        settle()
        d_attended = run.arena.zeros("do.all", (T, block.o.in_features), dtype).index_copy_(0, run.rows, d_attended)
        dx2 = run.arena.zeros("dy", (T, x.shape[1]), dtype).index_copy_(0, run.rows, dx2)
    n1, rstd1 = rms_norm(x, block.norm1.weight, block.norm1.eps, out=run.arena.take("n", tuple(x.shape), dtype))
    dqkv = _mixing_backward(run, n1, attended, d_attended)
    dn = run.arena.take("dn", tuple(x.shape), dtype) if need_dx else None
    qkv = run.backward("qkv", dqkv, dn, n1)
    if dn is None:
        return None, [*qkv, *o]
    return rms_norm_backward(dn, x, block.norm1.weight, rstd1, residual=dx2, out=dx2), [*qkv, *o]


def _mixing_backward(run: Pass, n1: Tensor, attended: Tensor, d_attended: Tensor) -> Tensor:
    """Through attention, rotation and the norms a head: the gradient (T, dq + 2 dkv) of the q|k|v product."""
    block = run.block
    qkv = run.buffer("qkv", (len(n1), block.qkv.out_features), n1.dtype)
    if "qkv" in KEPT[run.policy] or "x2" not in KEPT[run.policy]:  # kept, or rebuilt by the MLP half a moment ago
        q, k, v = _as_attended(run, qkv)
    else:
        q, k, v = _queries(run, n1, again=True)
    dqkv = run.arena.take("dqkv", tuple(qkv.shape), qkv.dtype)
    grads = _split(block, dqkv)
    answer, d_answer = attended.view(q.shape), d_attended.view(q.shape)
    attention_backward(q, k, v, answer, d_answer, run.objects.pop("lse"), run.batch.layout, block.attention, *grads)
    if block.rotary is not None:
        rope_(_turning(block, dqkv), *run.batch.angles[block.rotary], inverse=True)
    for grad, raw, norm in zip(grads, _split(block, qkv), (block.q_norm, block.k_norm, None), strict=True):
        if norm is not None:
            rstd = rms_norm(raw, norm.weight, norm.eps, out=run.arena.take("turned", tuple(raw.shape), raw.dtype))[1]
            rms_norm_backward(grad, raw, norm.weight, rstd, out=grad)
    return dqkv


def _through_post_norm(run: Pass, norm: Norm | None, name: str, grad: Tensor) -> Tensor:
    """The gradient of what came before a post-norm; `grad` itself where there is none."""
    if norm is None:
        return grad
    before = run.buffer(name, tuple(grad.shape), grad.dtype)
    out = run.arena.take("dz", tuple(grad.shape), grad.dtype)
    rstd = rms_norm(before, norm.weight, norm.eps, out=out)[1]
    return rms_norm_backward(grad, before, norm.weight, rstd, out=out)


def _zeros(projection: Projection) -> list[Tensor | None]:
    """Gradients of a projection that nothing reached. Only one without adapters can be meant."""
    assert not projection.parameters
    return []
