"""Settings of the training loop. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from topcoat.config import Config

Positive = Annotated[int, Field(ge=1)]
Objective = Literal["sft", "completion", "classification", "regression"]
Recompute = Literal["auto", "none", "mlp", "qkv", "block", "offload"]


class TrainSettings(Config):
    """One optimizer, one schedule, one loop. A step is one optimizer step."""

    epochs: float = Field(3.0, gt=0)
    """Passes over the training examples; a fraction stops inside one."""
    max_steps: Positive | None = None
    """Stop after this many steps, whatever `epochs` says."""
    objective: Objective = "sft"
    """What is learned. sft: the answers of conversations. completion: every token of plain texts (continued
    pre-training). classification: one label of each text. regression: one or several numbers of each text."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target that is spread evenly over all tokens, or all labels (arXiv:1512.00567). Only in training:
    validation loss and perplexity are without it."""
    neftune_noise_alpha: float | None = Field(None, gt=0)
    """NEFTune (arXiv:2310.05914): noise on the embeddings while training, uniform within alpha / sqrt(length * width);
    the paper takes 5 to 15. null adds none."""
    class_weights: Literal["balanced"] | None = None
    """With objective: classification, balanced weighs each row by rows / (labels * rows of its label), so that rare
    labels count as much as frequent ones. null weighs all rows alike."""
    batch_size: Positive = 16
    """Examples in one optimizer step. How they are split into micro batches changes nothing but speed and memory."""
    batch_tokens: Positive | None = None
    """Tokens in one optimizer step, instead of batch_size: examples are taken until the budget is reached."""
    micro_batch_tokens: Positive | Literal["auto"] = "auto"
    """Tokens computed at once. auto is 2048, or the longest example if that is longer. More is faster, up to memory."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = "auto"
    """Peak learning rate. auto goes by method and model size: LoRA 1e-3 at 135M down to 1e-4 at 30B, full tuning a
    tenth of it, methods that add tokens ten times it."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after warm-up: to zero along a cosine or a line, or constant."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly from zero."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of warm-up, instead of warmup_ratio."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "paged_adamw"] = "adamw"
    """AdamW, and where its two moments lie. adamw: fp32 in memory, 8 bytes a trained parameter. On a GPU with
    bitsandbytes: adamw_8bit takes 2 bytes and rounds them; paged_adamw_8bit and paged_adamw_32bit let the driver move
    them to host memory when the GPU is full, at the speed of the bus. On a CPU: paged_adamw keeps them in a file, for 8
    bytes a parameter of disk that each step reads and writes once; the numbers are those of adamw."""
    optimizer_folder: str | None = None
    """Folder for the file of paged_adamw, best on a fast local disk. null takes the run's own folder."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Decoupled decay of AdamW. Norms and biases are left out; on an adapter it pulls the update back to the base."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """The whole gradient is scaled down to this norm. null clips nothing."""
    recompute: Recompute = "auto"
    """What each block computes again in the backward instead of keeping it: none, mlp (gate and up), qkv (those and
    q, k, v), block (all but the down projection: the least memory, about a fifth less speed), offload (block,
    and its input waits in host memory; CUDA). auto keeps what fits. Results do not depend on it."""
    cuda_graphs: bool = False
    """Capture the kernels of whole micro batches and launch each at one stroke, for small models that wait for their
    host (below some 1.5B parameters). Batches are padded to few shapes, and a graph is used once it gave what launches
    give on two batches. CUDA, packed batches, no dropout. Has not run on a device yet."""
    save_every: Positive | None = None
    """Steps between checkpoints. null saves at every evaluation and at the end."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints kept, the best one besides."""
    early_stopping_patience: Positive | None = None
    """Stop after this many evaluations without a better validation loss. null never does."""
    report_to: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)
    """Trackers that get the figures of metrics.jsonl as well; each only if it is installed."""
