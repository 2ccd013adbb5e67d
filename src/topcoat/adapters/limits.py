"""What no model's shapes and no stored weights allow an adapter, from paths and numbers alone.

One list for both that ask: `planning/possible.py`, before anything is loaded, and the methods themselves when they have
the linears in hand. No torch.

    lora and kin, miss   r <= min(O, I)
    adalora              init_r <= min(O, I)
    qalora               r <= min(O, I / qalora_group_size), which is I's number of groups
    vera, ia3            no bound
"""

from __future__ import annotations

from collections.abc import Sequence

from topcoat.adapters.settings import AdaloraConfig, LoraConfig, MissConfig, QaloraConfig, TargetedConfig
from topcoat.errors import Problem

GROUP = "qalora_group_size"
"""The setting's name, which is also its key in files."""
PLAIN = (None, "bf16", "fp16", "fp32")
INTEGERS = ("int2", "int3", "int4", "gguf")
OPEN = ("stored", "plugin")
"""Formats of which only the files tell what they hold."""
TOKENS = "adapter.trainable_token_indices"
SAVED = "adapter.modules_to_save"


def rank_problem(config: TargetedConfig, path: str, out: int, inner: int, said: str = "") -> Problem | None:
    """Why the linear at `path`, (O, I), cannot have the rank that `config` gives it; `said` is what it is called."""
    said = said or path
    leaf = path.rsplit(".", 1)[-1]
    if isinstance(config, AdaloraConfig):
        most = min(out, inner)
        what = f"init_r {config.init_r} is above the rank of {said}, which is ({out}, {inner}): no change of it has a "
        fix = f"write init_r: {most} or less, and target_r below it"
        return Problem(f"{what}rank over {most}", "adapter.init_r", fix) if config.init_r > most else None
    if not isinstance(config, LoraConfig | MissConfig):
        return None
    r = config.at(path).r if isinstance(config, LoraConfig) else config.r
    groups = inner // config.qalora_group_size if isinstance(config, QaloraConfig) else inner
    most = min(out, groups)
    if r <= most:
        return None
    where = "adapter.r" if r == config.r else "adapter.rank_pattern"
    if isinstance(config, QaloraConfig) and groups < out:
        what = f"rank {r} is above {said}'s, which has {most} groups of {config.qalora_group_size} in a row: "
        fix = f"write r: {most} or less, or smaller groups in model.quantization and adapter.{GROUP}"
    else:
        what = f"rank {r} is above {said}'s, which is ({out}, {inner}): "
        patterned = isinstance(config, LoraConfig) and config.init_lora_weights != "eva"
        fix = f"write a smaller r, or rank_pattern: {{{leaf}: {most}}}" if patterned else f"write r: {most} or less"
    return Problem(f"{what}no change of it has a rank over {most}", where, fix)


def group_problem(group: int, own: int | None, format: str, inner: int) -> Problem | None:
    """Why a row of `inner` weights in `format`, in groups of `own`, cannot take QA-LoRA's update up in groups of
    `group`. `own` is None for a format that has no lowest value."""
    if own is None:
        what = f"method: qalora needs integer weights with a lowest value, and they are {format}"
        fix = "write model.quantization: {format: int4}, or leave these linears out by adapter.exclude_modules"
        return Problem(what, "model.quantization.format", fix)
    if group % own or inner % group:
        what = f"{GROUP} is {group}, and these rows of {inner} weights have groups of {own}"
        return Problem(what, f"adapter.{GROUP}", f"write adapter.{GROUP}: {own}, the group_size of model.quantization")
    return None


def carry_problem(method: str, start: object, format: object, named: str) -> tuple[str, str, str] | None:
    """(setting, what is wrong with it, fix) where no linear stored in `format` (None: as numbers) can carry the method
    or the start; `named` says where that format is from."""
    if format in OPEN:
        return None
    if method == "qalora" and format not in INTEGERS:
        what = f"is qalora, and {named}: it needs integer weights that have a lowest value"
        return "adapter.method", what, "write model.quantization: {format: int4}"
    if start == "loftq" and format in PLAIN:
        what = f"is loftq, and {named}: it repairs what rounding lost, and nothing is rounded"
        return "adapter.init_lora_weights", what, "write model.quantization: {format: nf4}, or leave this out"
    if isinstance(start, str) and start.startswith(("pissa", "olora")) and format not in PLAIN:
        what = f"is {start}, and {named}: it takes its start from the base's own numbers, and these are rounded"
        fix = "write loftq, which starts from what rounding lost; or take model.quantization out"
        return "adapter.init_lora_weights", what, fix
    return None


def tokens_problem(ids: Sequence[int], vocab: int) -> Problem | None:
    """Why the rows `ids` of an embedding of `vocab` rows cannot train."""
    wrong = [token for token in ids if token >= vocab]
    if wrong:
        what = f"{TOKENS} has {wrong[0]}, and the embedding ends at {vocab - 1}"
        return Problem(what, TOKENS, "name ids that the tokenizer has")
    if len(set(ids)) < len(ids):
        return Problem(f"{TOKENS} names a token twice", TOKENS, "name each id once")
    return None


def twice_problem(path: str) -> Problem:
    """What to say where the embedding at `path` trains whole and some of its rows besides."""
    return Problem(f"{path} is trained whole by {SAVED}, its rows with it", TOKENS, "keep one of the two")


def frozen_problem(setting: str, trained: str, path: str, format: str) -> Problem:
    """What to say where `setting` trains a head or an embedding that the quantization has stored and frozen."""
    name = path.rsplit(".", 1)[-1]
    return Problem(
        f"{setting} trains {trained}, and {path} is stored as {format} by model.quantization, which never trains",
        setting,
        f"take {name} out of model.quantization.overrides; where the checkpoint itself stores it so, name a format "
        f"such as nf4 in place of stored, which reads it as plain numbers; or leave {setting.rsplit('.', 1)[-1]} out",
    )


def tied_problem(path: str, others: Sequence[str]) -> Problem:
    """What to say where a copy of one of two tied modules would silently separate them (pitfall P51)."""
    return Problem(
        f"{path} shares its weight with {', '.join(others)}; training a copy of it would separate them, and the saved "
        "model would say they are one",
        SAVED,
        "leave tied modules out of modules_to_save; the linears in the blocks can learn the task",
    )
