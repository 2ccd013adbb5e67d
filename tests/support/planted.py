"""Clean rows, drawn, and one way to spoil some of them for every check."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any, NamedTuple

Row = dict[str, Any]

NOUNS = re.findall(
    r"\w+",
    """harbour engine river ledger garden violin bridge market lantern circuit forest kettle archive planet ticket
valley tunnel mirror pencil castle orchard magnet canal furnace turbine island compass barrel candle hammer meadow
sailor printer quarry rocket saddle temple umbrella vessel window anchor basket cellar dragon feather glacier helmet
insect jacket kitchen ladder mountain needle oyster pepper quilt ribbon shelter thunder village whistle yacht""",
)
VERBS = re.findall(
    r"\w+",
    """carries repairs follows measures protects replaces describes crosses gathers improves reaches shelters warms
divides lifts paints records signals supports touches""",
)
ADJECTIVES = re.findall(
    r"\w+",
    """quiet heavy narrow bright ancient hollow rapid gentle broken silver distant clever frozen humble modern
crooked patient rusty shallow wooden""",
)
ASKS = ("Explain why", "Describe how", "Tell me whether", "Say in short when", "Give one reason that", "Show how often")
LINKS = ("because", "while", "so that", "although", "and then", "before", "until", "where")


def sentence(rng: random.Random) -> str:
    """Some twelve words, ending in a full stop."""

    def clause() -> str:
        return f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(VERBS)} a {rng.choice(NOUNS)}"

    text = f"{clause()} {rng.choice(LINKS)} {clause()} near the {rng.choice(NOUNS)}."
    return text[0].upper() + text[1:]


def clean_row(rng: random.Random) -> Row:
    """One question and an answer of two to five sentences."""
    thing = f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(VERBS)} a {rng.choice(NOUNS)}"
    answer = " ".join(sentence(rng) for _ in range(rng.randint(2, 5)))
    return {"prompt": f"{rng.choice(ASKS)} {thing} near the {rng.choice(NOUNS)}?", "completion": answer}


def clean_rows(n: int, seed: int = 0) -> list[Row]:
    """`n` rows with which nothing is wrong."""
    rng = random.Random(seed)
    return [clean_row(rng) for _ in range(n)]


def label_rows(n: int, labels: tuple[str, ...] = ("billing", "delivery", "returns"), seed: int = 0) -> list[Row]:
    """`n` rows of a classification, every label on as many."""
    rng = random.Random(seed)
    return [{"prompt": sentence(rng), "completion": labels[at % len(labels)]} for at in range(n)]


class Planted(NamedTuple):
    """`spoil` changes rows in place and returns the positions a check must name (None: it speaks of the whole file)."""

    spoil: Callable[[list[Row]], list[int] | None]
    labels: bool = False
    also: tuple[str, ...] = ()
    """Checks that rightly find the same thing."""


def answers(**texts: str) -> Callable[[list[Row]], list[int]]:
    """Other answers at given rows: answers(row7="...")."""

    def spoil(rows: list[Row]) -> list[int]:
        for name, text in texts.items():
            rows[int(name[3:])]["completion"] = text
        return sorted(int(name[3:]) for name in texts)

    return spoil


def _copies(rows: list[Row]) -> list[int]:
    rows[40] = dict(rows[3])
    rows[41] = {"prompt": rows[4]["prompt"].upper(), "completion": rows[4]["completion"].lower()}
    return [40, 41]


def _near_copies(rows: list[Row]) -> list[int]:
    rows[50] = {**rows[9], "completion": rows[9]["completion"].replace(" near ", " beside ", 1)}
    rows[51] = {**rows[10], "completion": rows[10]["completion"] + " Yes."}
    return [50, 51]


def _template(rows: list[Row]) -> list[int]:
    cities = ("Oslo", "Lima", "Rome", "Cairo", "Quito", "Delhi", "Paris", "Tunis", "Kyoto", "Perth")
    for at, city in enumerate(cities):
        text = f"The wide market of {city} opens at {at + 3} and closes at {at + 14}."
        rows[20 + at] = {"prompt": f"When does the market of {city} open?", "completion": text}
    return list(range(20, 30))


def _openings(rows: list[Row]) -> list[int]:
    changed = list(range(0, len(rows), 3))
    for at in changed:
        rows[at]["completion"] = "That is a truly great question indeed! " + rows[at]["completion"]
    return changed


def _few_ngrams(rows: list[Row]) -> None:
    rng = random.Random(1)
    known = [sentence(rng) for _ in range(70)]
    for row in rows:
        row["completion"] = " ".join(rng.sample(known, 5))


def _one_topic(rows: list[Row]) -> None:
    rng = random.Random(2)
    for row in rows[: len(rows) * 4 // 5]:
        row["prompt"] = f"Translate this invoice letter for customers politely: {rng.choice(NOUNS)} {rng.choice(NOUNS)}"


def _mixed(rows: list[Row]) -> list[int]:
    for at, row in enumerate(rows):
        row["completion"] = '{"said": "' + row["completion"] + f'", "number": {at}}}'
    rows[5]["completion"] = rows[5]["completion"][:-1] + ","
    return [5]


def _marks(rows: list[Row]) -> list[int]:
    rows[7]["prompt"] = "<|im_start|>user\n" + rows[7]["prompt"]
    rows[8]["completion"] += " [INST]"
    return [7, 8]


def _spaces(rows: list[Row]) -> list[int]:
    rows[3]["prompt"] += " "
    rows[4]["completion"] = " " + rows[4]["completion"]
    rows[5]["completion"] += "\n"
    return [3, 4, 5]


def _spelling(rows: list[Row]) -> list[int]:
    for at in (0, 3, 6, 9, 12):  # five each: rare labels are another matter
        rows[at]["completion"] = "Billing"
    return [0, 3, 6, 9, 12]


def _contradict(rows: list[Row]) -> list[int]:
    rows[31] = {**rows[30], "completion": "returns" if rows[30]["completion"] != "returns" else "billing"}
    rows[33] = {**rows[30]}
    rows[33]["completion"] = rows[30]["completion"]
    return [30, 31, 33]


def _empty_prompt(rows: list[Row]) -> list[int]:
    rows[2]["prompt"] = " … "
    return [2]


def _loops(rows: list[Row]) -> list[int]:
    rows[6]["completion"] = ("The engine is warm. " * 40).strip()
    rows[7]["completion"] = rows[7]["completion"] + " the same the same" * 120
    return [6, 7]


def _languages(rows: list[Row]) -> list[int]:
    rows[11]["completion"] = (
        "Der alte Hafen liegt am Ufer des Flusses, und die Fischer reparieren dort jeden Abend ihre Netze, bevor sie "
        "nach Hause gehen und das Essen kochen."
    )
    rows[12]["completion"] = (
        "Старый мост соединяет два берега реки, и каждое утро по нему идут люди на рынок за хлебом."
    )
    return [11, 12]


def _damaged(rows: list[Row]) -> list[int]:
    rows[13]["completion"] = "The cafÃ© near the harbour serves crÃ¨me brÃ»lÃ©e, and itâ€™s good."
    rows[14]["prompt"] = "Explain why the m\ufffdrket is near the river?"
    return [13, 14]


def _debris(rows: list[Row]) -> list[int]:
    rows[15]["completion"] = "The harbour is near the river.<br><br>Read&nbsp;more about the engine."
    rows[16]["completion"] = "The river is near. &amp; the market follows."
    rows[17]["completion"] = "2024-05-01 12:00:03,120 ERROR the worker of the harbour did not answer in time"
    rows[18]["prompt"] += " \x1b[31mred\x1b[0m"
    return [15, 16, 17, 18]


def _hidden(rows: list[Row]) -> list[int]:
    for at, mark in enumerate(("\0", "\x08", "\u202e", "\u2067", "\U000e0041\U000e0042", "\x85\x9d", "\x1b")):
        key = "prompt" if at % 2 else "completion"
        rows[20 + at][key] = f"{rows[20 + at][key][:9]}{mark}{rows[20 + at][key][9:]}"
    rows[30]["completion"] += " 👩‍👧 🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f is not hidden."
    rows[31]["completion"] += " \u202bשלום\u202c is not hidden."
    return list(range(20, 27))


def _odd_rows(rows: list[Row]) -> list[int]:
    for at, row in enumerate(rows):
        turns = [("user", row.pop("prompt")), ("assistant", row.pop("completion"))]
        if at == 5:
            turns.insert(0, ("user", "Please answer this one."))
        row["messages"] = [{"role": role, "content": content} for role, content in turns]
    rows[8]["messages"].append({"role": "user", "content": "Thank you for the help."})
    return [5, 8]


def _secrets(rows: list[Row]) -> list[int]:
    rows[19]["completion"] += " Use AKIAQ3EGPJ7LMN2RSTUV for it."
    rows[20]["prompt"] += " postgres://admin:t0pS3cretpw@db.internal.net/main"
    return [19, 20]


def _personal(rows: list[Row]) -> list[int]:
    rows[21]["completion"] += " Write to jane.miller@gmail.com."
    rows[22]["completion"] += " Pay to DE89 3704 0044 0532 0130 00."
    rows[23]["prompt"] += " My card is 4539 1488 0343 6467."
    rows[24]["prompt"] += " Call +49 30 901820 77."
    return [21, 22, 23, 24]


def _imbalance(rows: list[Row]) -> None:
    for row in rows[: len(rows) - 8]:
        row["completion"] = "billing"


def _rare(rows: list[Row]) -> list[int]:
    rows[0]["completion"] = rows[1]["completion"] = "warranty"
    return [0, 1]


def _long(rows: list[Row]) -> list[int]:
    rng = random.Random(5)
    longest = list(range(100, 100 + len(rows) // 100))
    for at in longest:
        words = ("".join(rng.choices("aeioubdfgklmnprst", k=rng.randint(3, 9))) for _ in range(8000))
        rows[at]["completion"] = "The and " + " ".join(words) + "."
    return longest


_OPEN = (
    "The harbour engine carries a lantern because the quiet ledger repairs a bridge, while the market gathers a kettle "
    "near the old valley and the river follows a long and narrow wall of wood "
)
PLANTED: dict[str, Planted] = {
    "too_few_rows": Planted(lambda rows: rows.__delitem__(slice(30, None))),
    "exact_duplicates": Planted(_copies),
    "near_duplicates": Planted(_near_copies),
    "repeated_templates": Planted(_template),
    "repeated_openings": Planted(_openings),
    "few_distinct_ngrams": Planted(_few_ngrams),
    "one_topic": Planted(_one_topic),
    "mixed_formats": Planted(_mixed, also=("truncated_answers",)),
    "template_text": Planted(_marks),
    "outer_space": Planted(_spaces),
    "label_spelling": Planted(_spelling, labels=True),
    "odd_rows": Planted(_odd_rows),
    "contradictions": Planted(_contradict, labels=True, also=("exact_duplicates", "near_duplicates")),
    "empty_prompts": Planted(_empty_prompt),
    "empty_answers": Planted(answers(row3="", row5="\u200b\n  ")),
    "truncated_answers": Planted(
        answers(row3=_OPEN + "and then the", row5=_OPEN + "so the rest is here: ```python\nprint(1)")
    ),
    "refusals": Planted(
        answers(row3="I'm sorry, but I can't help with that.", row5="As an AI language model, I have no harbour.")
    ),
    "repeated_text": Planted(_loops, also=("truncated_answers",)),
    "wrong_language": Planted(_languages),
    "mojibake": Planted(_damaged),
    "debris": Planted(_debris),
    "hidden_characters": Planted(_hidden),
    "secrets": Planted(_secrets),
    "personal_data": Planted(_personal),
    "class_imbalance": Planted(_imbalance, labels=True, also=("rare_labels",)),
    "rare_labels": Planted(_rare, labels=True),
    "length_imbalance": Planted(_long),
}
