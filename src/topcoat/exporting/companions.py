"""What belongs beside weights: tokenizer, chat template, generation settings, licence.

The checkpoint's own files are copied byte for byte (pitfall P53); what a GGUF holds inside is written out. The template
in effect stands in chat_template.jinja, which transformers prefers over every other place: whoever serves the weights
renders as training did (pitfall P11).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from topcoat.files import write_file
from topcoat.model.source import Source

GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"


def write_companions(
    source: Source, tokenizer: PreTrainedTokenizerBase, folder: Path, template: str | None, *, generation: bool = True
) -> None:
    """Write them into the existing `folder`; `generation` settings belong beside whole models only."""
    copied = [file for file in source.files_to_copy() if generation or file.name != GENERATION]
    for file in copied:
        shutil.copyfile(file, folder / file.name)
    if not any(file.name.startswith("tokenizer") for file in copied):
        tokenizer.save_pretrained(folder)
    if template:
        write_file(folder / TEMPLATE, template)
    defaults = dict(source.generation_defaults())
    if generation and defaults and not (folder / GENERATION).exists():
        GenerationConfig.from_dict(defaults).save_pretrained(folder)
