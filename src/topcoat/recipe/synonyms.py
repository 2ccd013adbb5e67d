"""The field's other spellings of our settings, and settings of other tools that have no meaning here.

A synonym is read where its tool writes it: at the top level (Axolotl, LLaMA-Factory, command lines) or in the section
it belongs to (PEFT's LoraConfig in `adapter`, TRL's SFTConfig in `train`). What it was read as is said in a note.
Sources: peft 0.21 LoraConfig, trl SFTConfig, transformers TrainingArguments and BitsAndBytesConfig, Axolotl's config
reference, LLaMA-Factory's examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Values = dict[str, Any]  # dotted key -> value


@dataclass(frozen=True)
class Synonym:
    """One other spelling: the key it stands for, how its value reads, and sections beside its own that may hold it."""

    target: str
    read: Callable[[Any], Values] | None = None
    also: tuple[str, ...] = ()
    at_top: bool = True

    def values(self, value: Any) -> Values:
        """What the spelling means, as dotted keys. Raises ValueError, saying what was expected instead."""
        return {self.target: value} if self.read is None else self.read(value)

    def places(self) -> set[str]:
        """The sections (dotted, "" is the top) in which it is read."""
        own = {self.target.partition(".")[0]} if "." in self.target else {""}
        inner = {"model.quantization"} if self.target.startswith("model.quantization.") else set()
        return own | inner | set(self.also) | ({""} if self.at_top else set())


def flag(when_true: Values, when_false: Values | None = None) -> Callable[[Any], Values]:
    """A switch that stands for other settings; without `when_false`, false says nothing."""

    def read(value: Any) -> Values:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return when_true if value else (when_false or {})

    return read


def read_val_set_size(value: Any) -> Values:
    """A share; 0 means none. A number of rows is no share."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        return {"data.validation": value or None}
    raise ValueError("a share below 1 (0 for none); for a number of rows, name a file in data.validation")


def read_quant_type(value: Any) -> Values:
    """bitsandbytes' 4-bit table: nf4, which is also what load_in_4bit means here."""
    if value == "nf4":
        return {"model.quantization.format": "nf4"}
    raise ValueError("nf4; for fp4 write model.quantization: {format: fp4}")


def read_text_field(value: Any) -> Values:
    """The column that holds the text."""
    if not isinstance(value, str):
        raise ValueError("the name of a column")
    return {"data.columns.text": value} if value != "text" else {}


def read_lora_target(value: Any) -> Values:
    """LLaMA-Factory's "all" or names with commas between."""
    if value == "all":
        return {"adapter.target_modules": "all-linear"}
    if isinstance(value, str):
        return {"adapter.target_modules": [name.strip() for name in value.split(",")]}
    return {"adapter.target_modules": value}


_OPTIMS = {"adamw_bnb_8bit": "adamw_8bit", "adamw_8bit": "adamw_8bit"}
_OPTIMS |= {name: name for name in ("paged_adamw_32bit", "paged_adamw_8bit")}
_OPTIMS |= dict.fromkeys(("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"), "adamw")


def read_optim(value: Any) -> Values:
    """transformers' name of an optimizer."""
    if isinstance(value, str) and value in _OPTIMS:
        return {"train.optimizer": _OPTIMS[value]}
    raise ValueError(f"one of {', '.join(_OPTIMS)}")


_STAGES = {"sft": "sft", "pt": "completion"}


def read_stage(value: Any) -> Values:
    """LLaMA-Factory's name of what is learned."""
    if isinstance(value, str) and value in _STAGES:
        return {"train.objective": _STAGES[value]}
    raise ValueError("sft or pt (train.objective: completion)")


PER_DEVICE = "train.batch_size.per_device"  # these two are no settings: their product is train.batch_size
ACCUMULATION = "train.batch_size.accumulation"

_FOUR_BIT = {"model.quantization.format": "nf4"}
_EIGHT_BIT = {"model.quantization.format": "int8"}
_TRL = ("train",)

SYNONYMS: dict[str, Synonym] = {
    # model
    "base_model": Synonym("model.path"),
    "base_model_name_or_path": Synonym("model.path", also=("adapter",)),
    "model_name_or_path": Synonym("model.path"),
    "model_name": Synonym("model.path"),
    "model_path": Synonym("model.path"),
    "load_in_4bit": Synonym("model.quantization.format", flag(_FOUR_BIT)),
    "load_in_8bit": Synonym("model.quantization.format", flag(_EIGHT_BIT)),
    "bnb_4bit_quant_type": Synonym("model.quantization.format", read_quant_type),
    "bnb_4bit_use_double_quant": Synonym("model.quantization.double_quant"),
    "bnb_4bit_compute_dtype": Synonym("model.compute_dtype", also=("model.quantization",)),
    "torch_dtype": Synonym("model.compute_dtype"),
    "dtype": Synonym("model.compute_dtype"),
    "bf16": Synonym("model.compute_dtype", flag({"model.compute_dtype": "bf16"}), _TRL),
    "fp16": Synonym("model.compute_dtype", flag({"model.compute_dtype": "fp16"}), _TRL),
    "attn_implementation": Synonym("model.attention"),
    # adapter
    "lora_r": Synonym("adapter.r"),
    "lora_rank": Synonym("adapter.r"),
    "rank": Synonym("adapter.r"),
    "alpha": Synonym("adapter.lora_alpha", at_top=False),
    "dropout": Synonym("adapter.lora_dropout", at_top=False),
    "lora_target_modules": Synonym("adapter.target_modules"),
    "lora_target": Synonym("adapter.target_modules", read_lora_target),
    "lora_target_linear": Synonym("adapter.target_modules", flag({"adapter.target_modules": "all-linear"})),
    "lora_modules_to_save": Synonym("adapter.modules_to_save"),
    "peft_use_rslora": Synonym("adapter.use_rslora"),
    "use_dora": Synonym("adapter.method", flag({"adapter.method": "dora"})),
    "use_qalora": Synonym("adapter.method", flag({"adapter.method": "qalora"})),
    "peft_use_dora": Synonym("adapter.method", flag({"adapter.method": "dora"})),
    "peft_layers_to_transform": Synonym("adapter.layers_to_transform"),
    "peft_init_lora_weights": Synonym("adapter.init_lora_weights"),
    "peft_trainable_token_indices": Synonym("adapter.trainable_token_indices"),
    "loraplus_ratio": Synonym("adapter.loraplus_lr_ratio"),
    "peft_type": Synonym("adapter.method", at_top=False),
    "finetuning_type": Synonym("adapter.method"),
    # data
    "max_seq_length": Synonym("data.max_length", also=_TRL),
    "max_seq_len": Synonym("data.max_length", also=_TRL),
    "sequence_len": Synonym("data.max_length", also=_TRL),
    "cutoff_len": Synonym("data.max_length", also=_TRL),
    "sample_packing": Synonym("data.packing", also=_TRL),
    "train_file": Synonym("data.train"),
    "data_path": Synonym("data.train"),
    "dataset_path": Synonym("data.train"),
    "validation_file": Synonym("data.validation"),
    "eval_file": Synonym("data.validation"),
    "val_set_size": Synonym("data.validation", read_val_set_size),
    "val_size": Synonym("data.validation", read_val_set_size),
    "dataset_text_field": Synonym("data.columns.text", read_text_field, ("train",)),
    "train_on_inputs": Synonym("data.loss_on", flag({"data.loss_on": "all"}, {"data.loss_on": "assistant"})),
    "assistant_only_loss": Synonym("data.loss_on", flag({"data.loss_on": "assistant"}, {"data.loss_on": "all"}), _TRL),
    # train
    "num_train_epochs": Synonym("train.epochs"),
    "num_epochs": Synonym("train.epochs"),
    "lr": Synonym("train.learning_rate"),
    "per_device_train_batch_size": Synonym(PER_DEVICE),
    "micro_batch_size": Synonym(PER_DEVICE),
    "gradient_accumulation_steps": Synonym(ACCUMULATION),
    "grad_accum_steps": Synonym(ACCUMULATION),
    "lr_scheduler": Synonym("train.lr_scheduler_type"),
    "gradient_clipping": Synonym("train.max_grad_norm"),
    "max_norm": Synonym("train.max_grad_norm"),
    "optim": Synonym("train.optimizer", read_optim),
    "label_smoothing_factor": Synonym("train.label_smoothing"),
    "stage": Synonym("train.objective", read_stage),
    "save_steps": Synonym("train.save_every"),
    "save_total_limit": Synonym("train.keep_checkpoints"),
    # evaluate and the rest
    "eval_steps": Synonym("evaluate.every", also=_TRL),
    "output_dir": Synonym("output", also=_TRL),
    "random_seed": Synonym("seed"),
}

# Our own names that other tools write at the top level: read there too.
FLAT: dict[str, tuple[str, ...]] = {
    "model": ("chat_template", "revision", "compute_dtype"),
    "adapter": (
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "trainable_token_indices",
        "init_lora_weights",
        "loraplus_lr_ratio",
    ),
    "data": ("max_length", "packing"),
    "train": (
        "epochs",
        "max_steps",
        "batch_size",
        "batch_tokens",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_ratio",
        "warmup_steps",
        "optimizer",
        "optimizer_folder",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "recompute",
        "early_stopping_patience",
        "report_to",
        "objective",
        "label_smoothing",
        "neftune_noise_alpha",
    ),
}
SYNONYMS |= {key: Synonym(f"{section}.{key}") for section, keys in FLAT.items() for key in keys}
SYNONYMS["gradient_checkpointing"] = Synonym(
    "train.recompute", flag({"train.recompute": "block"}, {"train.recompute": "none"}), also=_TRL
)
SYNONYMS["max_length"] = Synonym("data.max_length", also=_TRL)
SYNONYMS["packing"] = Synonym("data.packing", also=_TRL)
SYNONYMS["seed"] = Synonym("seed", also=_TRL)

# A section written as one word: `model: ./path` is `model: {path: ./path}`.
SHORTHANDS = {
    "model": "model.path",
    "model.quantization": "model.quantization.format",
    "adapter": "adapter.method",
    "data": "data.train",
}

# Other spellings of values.
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
VALUES: dict[tuple[str, str], Values] = {
    ("adapter.method", "qlora"): {"adapter.method": "lora", "model.quantization.format": "nf4"},
    ("adapter.method", "LORA"): {"adapter.method": "lora"},
    ("adapter.method", "ADALORA"): {"adapter.method": "adalora"},
    ("adapter.method", "irqlora"): {"adapter.method": "iec", "model.quantization.format": "nf4-icq"},
    ("adapter.method", "IA3"): {"adapter.method": "ia3"},
    ("adapter.method", "VERA"): {"adapter.method": "vera"},
    ("adapter.method", "MISS"): {"adapter.method": "miss"},
    ("adapter.target_modules", "all"): {"adapter.target_modules": "all-linear"},
    ("model.attention", "flash_attention_2"): {"model.attention": "topcoat"},
    ("train.lr_scheduler_type", "constant_with_warmup"): {"train.lr_scheduler_type": "constant"},
    ("train.report_to", "none"): {"train.report_to": []},
}
VALUES |= {("model.compute_dtype", word): {"model.compute_dtype": ours} for word, ours in _DTYPES.items()}

_HUB = "nothing is uploaded; publish the folder RUN/adapter yourself"
_TRACKER = "name the tracker in train.report_to"
_EVERY = "say how often in steps: evaluate.every, train.save_every"
_DEVICES = "a run uses one device; model.device names it"
_ROWS = "name one file in data.train; topcoat recognises its format"
_DTYPE_ONE = "model.compute_dtype decides it"
_CAUSAL = "only causal language models are tuned here, and config.json says which"

# Settings of other tools that decide nothing here -> why.
NO_MEANING: dict[str, str] = {
    "logging_steps": "every step is logged to metrics.jsonl",
    "logging_dir": "logs are in the run folder: metrics.jsonl",
    "logging_strategy": "every step is logged to metrics.jsonl",
    "logging_first_step": "every step is logged to metrics.jsonl",
    "disable_tqdm": "progress is shown on a terminal only",
    "push_to_hub": _HUB,
    "hub_model_id": _HUB,
    "hub_token": _HUB,
    "wandb_project": _TRACKER,
    "wandb_entity": _TRACKER,
    "run_name": "the run is named by its folder, output",
    "eval_strategy": _EVERY,
    "evaluation_strategy": _EVERY,
    "save_strategy": _EVERY,
    "load_best_model_at_end": "the best checkpoint is always kept and becomes the adapter",
    "metric_for_best_model": "the validation loss decides which checkpoint is best",
    "per_device_eval_batch_size": "evaluation uses train.micro_batch_tokens",
    "eval_batch_size": "evaluation uses train.micro_batch_tokens",
    "resume_from_checkpoint": "continue a run with: topcoat train RECIPE --resume",
    "overwrite_output_dir": "a run folder is never overwritten; name a new one in output",
    "overwrite_cache": "nothing is cached between runs",
    "do_train": "the verb says it: topcoat train",
    "do_eval": "the validation rows are always evaluated; data.validation: null has none",
    "trust_remote_code": "code from a model's folder is never run",
    "deepspeed": _DEVICES,
    "fsdp": _DEVICES,
    "fsdp_config": _DEVICES,
    "device_map": _DEVICES,
    "ddp_timeout": _DEVICES,
    "ddp_find_unused_parameters": _DEVICES,
    "local_rank": _DEVICES,
    "dataloader_num_workers": "rows are tokenised before the first step",
    "dataloader_pin_memory": "rows are tokenised before the first step",
    "dataset_num_proc": "rows are tokenised before the first step",
    "preprocessing_num_workers": "rows are tokenised before the first step",
    "remove_unused_columns": "columns that the format does not use are left alone",
    "group_by_length": "packing leaves no padding to save",
    "pad_to_sequence_len": "packing leaves no padding to save",
    "multipack": "write data.packing: true",
    "flash_attention": "model.attention: topcoat already skips what is masked",
    "flash_attn": "model.attention: topcoat already skips what is masked",
    "use_flash_attention_2": "model.attention: topcoat already skips what is masked",
    "gradient_checkpointing_kwargs": "gradient_checkpointing is true or false",
    "use_cache": "the KV cache is used for generation and never in training",
    "tf32": _DTYPE_ONE,
    "bf16_full_eval": _DTYPE_ONE,
    "pure_bf16": "adapters are always trained in fp32",
    "task_type": "train.objective says it: classification and regression are SEQ_CLS",
    "model_type": _CAUSAL,
    "tokenizer_type": "the tokenizer is read from the model's folder",
    "tokenizer_name_or_path": "the tokenizer is read from the model's folder",
    "tokenizer": "the tokenizer is read from the model's folder",
    "special_tokens": "the tokenizer's own special tokens are kept",
    "bias": "biases stay frozen",
    "fan_in_fan_out": "the layer's own layout is known from the checkpoint",
    "lora_fan_in_fan_out": "the layer's own layout is known from the checkpoint",
    "inference_mode": "the verb says it",
    "rl": "only supervised fine-tuning is built in this version",
    "template": "the tokenizer's own chat template is used; another one is a file, model.chat_template",
    "datasets": _ROWS,
    "dataset": _ROWS,
    "test_datasets": "name the held-out rows in data.validation",
    "dataset_prepared_path": "nothing is cached between runs",
    "strict": "a recipe is always read strictly",
}

# Words people give a section -> what it is called here.
SECTION_NAMES = {
    "training": "train",
    "trainer": "train",
    "training_args": "train",
    "training_arguments": "train",
    "lora": "adapter",
    "lora_config": "adapter",
    "peft": "adapter",
    "peft_config": "adapter",
    "eval": "evaluate",
    "evaluation": "evaluate",
    "quantization": "model.quantization",
    "quantization_config": "model.quantization",
    "bnb_config": "model.quantization",
}
