"""What a CUDA graph cannot capture, as far as the recipe tells: a replay would repeat what should be drawn anew."""

from __future__ import annotations

from collections.abc import Callable

LABELLED = ("classification", "regression")


def find_uncaptured(value: Callable[[str], object]) -> list[tuple[str, str, str]]:
    """(setting, what is wrong with it, fix) beside train.cuda_graphs: true; `value` reads a setting by its name."""
    if value("train.cuda_graphs") is not True:
        return []
    asked = "and train.cuda_graphs is true"
    rules = (
        ("data.packing", value("data.packing") is False, "padded batches have too many shapes", "true"),
        ("adapter.lora_dropout", bool(value("adapter.lora_dropout")), "a graph would repeat the masks it drew", "0"),
        (
            "train.neftune_noise_alpha",
            value("train.neftune_noise_alpha") is not None,
            "a graph would repeat the noise it drew",
            "null",
        ),
        ("train.objective", value("train.objective") in LABELLED, "only tokens' losses are captured", "sft"),
        ("adapter.method", value("adapter.method") == "adalora", "its ranks change from step to step", "lora"),
    )
    return [
        (dots, f"is {_shown(value(dots))} {asked}: {why}", f"write {dots}: {instead}, or train.cuda_graphs: false")
        for dots, wrong, why, instead in rules
        if wrong
    ]


def _shown(value: object) -> str:
    return "false" if value is False else str(value)
