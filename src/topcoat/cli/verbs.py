"""The table VERBS: every verb with its line of help. A verb lives in the file of its name, as the function `command`.

A verb that is a group (`topcoat data show`) has a file that holds the table COMMANDS of its own verbs; each of those
lives in the file `GROUP_VERB.py`, such as data_show.py. The tables are all that `--help` reads; the file is imported
when its verb is called.
"""

from __future__ import annotations

VERBS: dict[str, str] = {
    "demo": "the whole story on an embedded model and data set, in minutes, on CPU",
    "init": "write a short, commented recipe for a model and a data file",
    "plan": "will it fit and how long: the memory bill, the time, and what to change",
    "advise": "prompt, RAG, QLoRA, LoRA or full tuning: decided from task, data and hardware",
    "data": "check what is in the data, see which tokens are trained, split it without leaks",
    "train": "train an adapter from a recipe; --resume continues, Ctrl-C saves and stops",
    "tune": "search for good values of settings, such as the learning rate, within a time",
    "chat": "talk to a model or a finished run in the terminal",
    "merge": "write base and adapter as one model, with a proof that it computes the same",
    "export": "write a run as GGUF for llama.cpp and Ollama, or for PEFT and vLLM, proved",
    "quantize": "write a model in another number format, or measure what formats cost",
    "doctor": "this machine and what it can do",
    "schema": "the JSON Schema of a recipe, for editors",
}
GROUPS: tuple[str, ...] = ("data",)
"""The verbs that are groups."""
