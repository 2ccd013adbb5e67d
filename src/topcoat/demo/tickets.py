"""The data set of `topcoat demo`: customer messages and the JSON ticket each of them stands for, made from a seed.

A row is a chat of three messages: one short instruction, what the customer wrote, and the ticket as compact JSON (the
SmolLM2 tokenizer spends 24 to 27 tokens on a ticket without blanks, 30 to 34 with them). Every field follows from the
text: the intent from one sentence, the product from its name, the urgency from a cue or its absence, the order number
from its digits. Held-out rows ask for more than memory: their combinations of intent, product and urgency, their
order numbers and every sentence in them are absent from the training rows.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from topcoat.demo.tickets_phrases import CLOSING, GREETING, INLINE, LAYOUTS, ORDER, SMALL_TALK, TYPOS, URGENCY
from topcoat.demo.tickets_text import ISSUES, PRODUCTS, Pool

Row = dict[str, Any]
Split = Literal["train", "held_out"]
Combination = tuple[str, str, str]
"""intent, product, urgency."""

SYSTEM = "Turn the message into a JSON ticket."
INTENTS = tuple(ISSUES)
URGENCIES = tuple(URGENCY)
ADJECTIVES = ("", "", "", "", "new ", "blue ", "black ", "small ", "red ", "large ")
ORDER_GIVEN = 0.72
"""Share of the messages that name an order number."""
MOST_ROWS = 20_000
"""Most rows of both parts together: below it no search for an unseen message takes long."""


@dataclass(frozen=True)
class TicketSet:
    """The two parts of the data set, each a list of {"messages": [system, user, assistant]}."""

    train: list[Row]
    held_out: list[Row]


def tickets(seed: int = 0, train: int = 1600, held_out: int = 120) -> TicketSet:
    """`train` and `held_out` rows, the same for the same arguments on every machine and in every process.

    Raises ValueError when a count is negative or both exceed MOST_ROWS together.
    """
    if min(train, held_out) < 0 or train + held_out > MOST_ROWS:
        raise ValueError(f"train and held_out must be 0 or more and at most {MOST_ROWS} together")
    numbers = [str(n) for n in random.Random(f"{seed} orders").sample(range(10_000, 100_000), train + held_out)]
    combinations = split_combinations(seed)
    seen: set[str] = set()
    return TicketSet(
        train=list(_rows(seed, "train", combinations["train"], numbers[:train], seen)),
        held_out=list(_rows(seed, "held_out", combinations["held_out"], numbers[train:], seen)),
    )


def split_combinations(seed: int) -> dict[Split, list[Combination]]:
    """The 288 combinations of intent, product and urgency: 240 to train on, 48 to be tested on.

    A Latin pattern over shuffled values holds out the same number of combinations of every intent (6), of every
    product (4) and of every urgency (16).
    """
    rng = random.Random(f"{seed} combinations")
    intents, products, urgencies = (rng.sample(list(v), len(v)) for v in (INTENTS, PRODUCTS, URGENCIES))
    parts: dict[Split, list[Combination]] = {"train": [], "held_out": []}
    for i, intent in enumerate(intents):
        for p, product in enumerate(products):
            for u, urgency in enumerate(urgencies):
                parts["held_out" if (i + p + 2 * u) % 6 == 0 else "train"].append((intent, product, urgency))
    return parts


def _rows(
    seed: int, split: Split, combinations: list[Combination], numbers: list[str], seen: set[str]
) -> Iterator[Row]:
    """One row for each of `numbers`, going round all combinations before one comes again; `seen` gathers messages."""
    rng = random.Random(f"{seed} {split}")
    deck: list[Combination] = []
    for number in numbers:
        if not deck:
            deck = rng.sample(combinations, len(combinations))
        intent, product, urgency = deck.pop()
        order = number if rng.random() < ORDER_GIVEN else None
        message = _write(rng, split, intent, product, urgency, order)
        while message in seen:
            message = _write(rng, split, intent, product, urgency, order)
        seen.add(message)
        yield ticket_row(message, {"intent": intent, "product": product, "urgency": urgency, "order": order})


def ticket_row(message: str, ticket: dict[str, str | None]) -> Row:
    """One row in `messages` format; the ticket is written without blanks, its keys in the order given."""
    answer = json.dumps(ticket, separators=(",", ":"))
    contents = {"system": SYSTEM, "user": message, "assistant": answer}
    return {"messages": [{"role": role, "content": content} for role, content in contents.items()]}


def _write(rng: random.Random, split: Split, intent: str, product: str, urgency: str, order: str | None) -> str:
    """The message of one customer."""

    def pick(pool: Pool) -> str:
        return rng.choice(getattr(pool, split))

    layout = pick(LAYOUTS).split()
    inline = order is not None and rng.random() < 0.35
    issue = _fill(rng, pick(ISSUES[intent]), product)
    if inline:
        issue = issue[:-1] + pick(INLINE).format(n=order) + issue[-1]
    parts = {
        "greeting": pick(GREETING),
        "issue": issue,
        "order": pick(ORDER).format(n=order) if order is not None and not inline else "",
        "urgency": pick(URGENCY[urgency]),
        "talk": pick(SMALL_TALK) if rng.random() < 0.6 else "",
        "closing": pick(CLOSING),
    }
    space = "\n" if rng.random() < 0.15 else " "
    return _style(rng)(space.join(parts[name] for name in layout if parts[name]))


def _fill(rng: random.Random, sentence: str, product: str) -> str:
    """`sentence` with the product named in one of its ways."""
    name = rng.choice(ADJECTIVES) + rng.choice(PRODUCTS[product])
    article = "an" if name[0] in "aeiou" else "a"
    return sentence.replace("{a}", f"{article} {name}").replace("{p}", name)


def _style(rng: random.Random) -> Callable[[str], str]:
    """How this customer types: mostly with care, sometimes without capitals or full stops, with slips, or loudly."""
    draw = rng.random()
    if draw < 0.14:
        return str.lower
    if draw < 0.24:
        return lambda text: re.sub(r"[.!,](?=\s|$)", "", text).lower()
    if draw < 0.28:
        return str.upper
    if draw < 0.46:
        return lambda text: _mistype(rng, text)
    return lambda text: text


def _mistype(rng: random.Random, text: str) -> str:
    """`text` with some of the words of TYPOS misspelt."""

    def slip(word: re.Match[str]) -> str:
        wrong = TYPOS.get(word[0].lower())
        if wrong is None or rng.random() < 0.4:
            return word[0]
        return wrong.capitalize() if word[0][0].isupper() else wrong

    return re.sub(r"[A-Za-z]+", slip, text)


def write_tickets(folder: Path, seed: int = 0, train: int = 1600, held_out: int = 120) -> tuple[Path, Path]:
    """Write `train.jsonl` and `held_out.jsonl` into `folder` (made if missing) and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = tickets(seed, train, held_out)
    paths = folder / "train.jsonl", folder / "held_out.jsonl"
    for path, part in zip(paths, (rows.train, rows.held_out), strict=True):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part), encoding="utf-8")
    return paths
