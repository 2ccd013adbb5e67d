"""TRL's SFTTrainer as a contender, and Unsloth's model inside it.

The documents of a step are tokenized already; with packing they go through TRL's own `pack_dataset`, step by step, so
that a step holds the same documents as everyone's. The trainer's callbacks wait between steps and take the time from
before the forward to after the optimizer.
"""

from __future__ import annotations

import time
from typing import Any

from bench.worker import Session, versions

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def unsloth_model(spec: dict[str, Any]) -> Any:
    """Unsloth's patched model with the exported adapter. Importing Unsloth changes torch and TRL, so it comes first."""
    from unsloth import FastLanguageModel  # isort: skip

    import torch
    from safetensors.torch import load_file

    model, _ = FastLanguageModel.from_pretrained(
        spec["model"], max_seq_length=spec["tokens"], dtype=torch.bfloat16, load_in_4bit=spec["stored"] == "nf4"
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=spec["rank"],
        lora_alpha=spec["alpha"],
        lora_dropout=0,
        target_modules=LINEARS,
        use_gradient_checkpointing=spec["settings"]["checkpointing"],
    )
    start = load_file(spec["adapter"] + "/adapter_model.safetensors")
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in start.items():
            own[name.replace(".weight", ".default.weight")].copy_(value)
    return model


def rows(session: Session, packing: bool) -> tuple[Any, int]:
    """The data set, and how many of its rows are one step."""
    from datasets import Dataset, concatenate_datasets
    from trl import pack_dataset

    steps = [
        Dataset.from_dict({name: [d[name] for d in documents] for name in ("input_ids", "labels")})
        for documents in session.steps
    ]
    if packing:
        steps = [pack_dataset(step, session.spec["row_tokens"], strategy="bfd") for step in steps]
    else:  # a batch has a fixed number of rows: the documents that every step has
        fewest = min(len(step) for step in steps)
        steps = [step.select(range(fewest)) for step in steps]
        session.steps = [documents[:fewest] for documents in session.steps]
    sizes = {len(step) for step in steps}
    if len(sizes) > 1:
        raise SystemExit(f"TRL packs the steps into different numbers of rows: {sorted(sizes)}")
    return concatenate_datasets(steps), sizes.pop()


def arguments(spec: dict[str, Any], batch: int) -> Any:
    """TRL's settings: the same optimizer and rate as everyone's, nothing shuffled, nothing saved."""
    from trl import SFTConfig

    settings = spec["settings"]
    return SFTConfig(
        output_dir=spec["scratch"],
        use_cpu=spec["device"] == "cpu",
        bf16=True,
        per_device_train_batch_size=batch,
        max_steps=1 << 20,
        max_length=spec["row_tokens"],
        packing=settings["packing"],
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False if settings.get("unsloth") else settings["checkpointing"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=spec["max_grad_norm"],
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


def main() -> None:
    session = Session()
    spec, settings = session.spec, session.spec["settings"]
    if settings.get("unsloth"):
        model = unsloth_model(spec)
    else:
        import torch

        from bench.peers import load

        model = load(spec, torch.bfloat16)
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTTrainer

    data, batch = rows(session, settings["packing"])
    saw: dict[str, Any] = {}

    class Recorder(SFTTrainer):
        """The trainer, whose loss and inputs are looked at."""

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            real = inputs.get("attention_mask")
            ids, labels = inputs["input_ids"], inputs["labels"]
            saw["ids"], saw["labels"] = (x.flatten() if real is None else x[real.bool()] for x in (ids, labels))
            answer = super().compute_loss(model, inputs, *args, **kwargs)
            saw["loss"] = (answer[0] if isinstance(answer, tuple) else answer).detach()
            return answer

    class Pauses(TrainerCallback):
        """Waits before a step, reports after it."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            if state.global_step == 0:
                session.wait()  # the later steps were asked for when the one before was reported
            saw["began"] = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            saw["seconds"] = time.perf_counter() - saw["began"]

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **unused: Any
        ) -> None:
            if not logs or "grad_norm" not in logs:
                return
            session.report(
                saw["seconds"],
                float(saw["loss"]),
                float(logs["grad_norm"]),
                saw["ids"].tolist(),
                saw["labels"].tolist(),
            )
            control.should_training_stop = not session.wait()

    trainer = Recorder(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(spec["model"]),
        train_dataset=data,
        callbacks=[Pauses()],
        args=arguments(spec, batch),
    )
    names = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "unsloth")
    session.ready(versions=versions(*names), rows_a_step=batch)
    trainer.train()
    session.close()


if __name__ == "__main__":
    main()
