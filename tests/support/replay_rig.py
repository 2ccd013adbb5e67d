"""A tiny model that trains by graphs, and batches that share a shape."""

from __future__ import annotations

from pathlib import Path

import torch
from recorded_ops import RecordedOps

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import LoraConfig
from topcoat.data.batches import Batch, packed
from topcoat.kernels.graph import CudaCapture
from topcoat.model.attention import register
from topcoat.model.fuse import FusedModel, fuse
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny, tiny_model
from topcoat.quant.settings import Nf4Config
from topcoat.training.objectives.sft import sft
from topcoat.training.objectives.static_sft import static_sft
from topcoat.training.optimizers.trained import Flat, Group
from topcoat.training.replay import Replay
from topcoat.training.static_batch import shape_of

BUDGET = 512


class Rig:
    """A tiny model with an adapter, its gradients in one vector, and graphs over it."""

    def __init__(
        self,
        family: str = "llama",
        policy: str = "none",
        loss=None,
        device: str = "cpu",
        folder: Path | None = None,
        **lora,
    ):
        """`folder` is for the files of a model that is loaded as nf4."""
        register()
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        if folder is None:
            self.model = tiny_model(family, dtype=dtype).to(device)
        else:
            settings = ModelSettings(
                path=str(save_tiny(folder, family)),
                compute_dtype="fp32" if device == "cpu" else "bf16",
                device=device,
                quantization=Nf4Config(double_quant=True),
            )
            self.model = load_model(settings).model
        self.model.config._attn_implementation = "topcoat"
        self.adapters = attach(self.model, LoraConfig(r=4, lora_alpha=8.0, **lora))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.adapters.parameters().values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(device))
        self.trained = Flat(self.adapters.parameters(), lambda name, parameter: Group())
        fused = fuse(self.model, policy)
        assert isinstance(fused, FusedModel), fused
        self.fused, self.said, self.device = fused, [], device
        self.capture = RecordedOps() if device == "cpu" else CudaCapture(torch.device(device))
        self._generator = torch.Generator().manual_seed(5)
        self.loss = loss or (lambda batch: static_sft(fused, batch))
        self.replay = self.make(self.capture)

    def make(self, capture) -> Replay:
        return Replay(lambda batch: self.loss(batch), self.trained, BUDGET, capture, self.said.append)

    def update(self) -> None:
        """What an optimizer step does: parameters change where they lie."""
        with torch.no_grad():
            drawn = torch.randn(self.trained.size, generator=self._generator)
            self.trained.values.add_(0.01 * drawn.to(self.device))

    def launches(self) -> Replay:
        """The same without graphs."""
        replay = self.make(self.capture)
        replay.given_up = "never wanted"
        return replay

    def gradient(self, compute, batch: Batch, factor: float = 0.25):
        """What `compute` adds to the gradient, and the loss."""
        self.trained.zero()
        loss = compute(batch, factor)
        return float(loss), self.trained.gradients.clone()

    def plain(self, batch: Batch, factor: float):
        loss = sft(self.model, batch, self.fused)
        (loss * factor).backward()
        return loss.detach()


def batches(examples, count: int, documents: int = 5) -> list[Batch]:
    """Packed batches of as many documents, of other lengths, ids and labels each time, all of one shape."""
    found = []
    for seed in range(count):
        lengths = [60 + 7 * ((seed + at) % 5) + 3 * at for at in range(documents)]
        found.append(packed(examples(lengths, seed=seed, context=0.45), range(documents)))
    shapes = {shape_of(batch, batch.n_target_tokens, BUDGET) for batch in found}
    assert len(shapes) == 1, shapes
    return found
