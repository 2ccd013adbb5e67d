"""Chat rows in any number, made of real ones: python -m bench.feed_rows FOLDER OUT --megabytes 200.

FOLDER holds chat files (`messages`, or `instruction` and `output`). Each new row has the turns of a real one, made of
sentences drawn from all; one word in 25 is spelled anew, so that the number of different words grows with the file as
in text that people write, and a memory of words does not help more than it would there.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
from pathlib import Path

NEW_WORDS = 0.04
SENTENCES = re.compile(r"(?<=[.!?:;\n])(?=\s)")


def turns_of(folder: Path) -> list[list[str]]:
    """The contents of each conversation in the folder, the user's first."""
    found = []
    for path in sorted(folder.glob("*_train.jsonl")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            row = json.loads(line) if line else {}
            messages = row.get("messages")
            if messages and all(isinstance(message["content"], str) for message in messages):
                found.append([message["content"] for message in messages if message["role"] != "system"])
            elif "output" in row and "instruction" in row:
                found.append([f"{row['instruction']} {row.get('input') or ''}".strip(), row["output"]])
    return [turns for turns in found if len(turns) > 1]


def respelled(draw: random.Random, word: str) -> str:
    """A word as long that most likely stands nowhere else, its first and last characters as they were."""
    if len(word) < 4:
        return word
    inner = "".join(draw.choice(string.ascii_lowercase) if c.isalpha() else c for c in word[1:-1])
    return word[0] + inner + word[-1]


def text_like(draw: random.Random, content: str, sentences: list[str]) -> str:
    """A text about as long as `content`, of drawn sentences."""
    parts, size = [], 0
    while size < len(content):
        sentence = draw.choice(sentences)
        parts.append(sentence if sentence[0].isspace() else f" {sentence}")
        size += len(parts[-1])
    words = "".join(parts).strip().split(" ")
    return " ".join(respelled(draw, word) if draw.random() < NEW_WORDS else word for word in words) or "Yes."


def write(folder: Path, out: Path, megabytes: float) -> None:
    """Write rows until the file has its size."""
    draw = random.Random(0)
    conversations = turns_of(folder)
    sentences = [one for turns in conversations for turn in turns for one in SENTENCES.split(turn) if one.strip()]
    size = 0
    with out.open("w", encoding="utf-8", newline="\n") as file:
        while size < megabytes * 1e6:
            turns = draw.choice(conversations)
            messages = [
                {"role": "assistant" if number % 2 else "user", "content": text_like(draw, turn, sentences)}
                for number, turn in enumerate(turns)
            ]
            size += file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def main() -> None:
    """Write the file that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--megabytes", type=float, default=200.0)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.out, arguments.megabytes)


if __name__ == "__main__":
    main()
