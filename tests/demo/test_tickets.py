"""The demo's data set: made from a seed, unambiguous, varied; nothing of a held-out row was trained on."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest

from topcoat.demo.tickets import (
    INTENTS,
    SYSTEM,
    URGENCIES,
    split_combinations,
    tickets,
    write_tickets,
)
from topcoat.demo.tickets_phrases import CLOSING, GREETING, INLINE, LAYOUTS, ORDER, SMALL_TALK, TYPOS, URGENCY
from topcoat.demo.tickets_text import ISSUES, PRODUCTS, Pool

SET = tickets(seed=0, train=1600, held_out=200)
ALL = SET.train + SET.held_out
POOLS = [*ISSUES.values(), *URGENCY.values(), ORDER, INLINE, GREETING, SMALL_TALK, CLOSING, LAYOUTS]


def message(row):
    return row["messages"][1]["content"]


def ticket(row):
    return json.loads(row["messages"][2]["content"])


def words(text):
    return re.sub(r"[^a-z0-9{} ]", "", text.lower())


def skeleton(row):
    """The message without case, signs, digits and product names: what is left of its wording."""
    text = re.sub(r"\d+", "0", message(row).lower())
    for name in sorted((n for names in PRODUCTS.values() for n in names), key=len, reverse=True):
        text = text.replace(name, "P")
    return text


def test_the_same_seed_gives_the_same_rows_in_every_process(tmp_path):
    contents = set()
    for hash_seed in ("0", "1", "4242"):
        folder = tmp_path / hash_seed
        code = (
            "import sys, pathlib; from topcoat.demo.tickets import write_tickets as w; w(pathlib.Path(sys.argv[1]), 7)"
        )
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment)
        contents.add(tuple((folder / name).read_bytes() for name in ("train.jsonl", "held_out.jsonl")))
    assert len(contents) == 1
    assert tickets(seed=1, train=50, held_out=5) != tickets(seed=2, train=50, held_out=5)


def test_a_row_is_a_short_instruction_a_message_and_a_compact_ticket():
    for row in ALL:
        assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
        assert row["messages"][0]["content"] == SYSTEM
        answer = row["messages"][2]["content"]
        assert answer == json.dumps(json.loads(answer), separators=(",", ":"))
        assert list(ticket(row)) == ["intent", "product", "urgency", "order"]
        assert ticket(row)["intent"] in INTENTS
        assert ticket(row)["product"] in PRODUCTS
        assert ticket(row)["urgency"] in URGENCIES
        assert message(row) == message(row).strip()
        assert "{" not in message(row)


def test_every_field_can_be_read_from_the_message():
    for row in ALL:
        text, fields = message(row).lower(), ticket(row)
        named = {product for product, names in PRODUCTS.items() if any(re.search(rf"\b{n}\b", text) for n in names)}
        assert named == {fields["product"]}
        five_digits = set(re.findall(r"\d{5,}", text))
        assert five_digits == (set() if fields["order"] is None else {fields["order"]})


def test_held_out_combinations_never_occur_in_training():
    def combos(rows):
        return {(t["intent"], t["product"], t["urgency"]) for t in map(ticket, rows)}

    assert not combos(SET.train) & combos(SET.held_out)
    assert len(combos(SET.train)) == 240
    assert len(combos(SET.held_out)) == 48


@pytest.mark.parametrize("seed", range(5))
def test_each_value_has_its_fair_share_of_the_held_out_combinations(seed):
    parts = split_combinations(seed)
    assert len(parts["train"]) + len(parts["held_out"]) == len(INTENTS) * len(PRODUCTS) * len(URGENCIES)
    for field, share in ((0, 6), (1, 4), (2, 16)):
        assert set(Counter(combo[field] for combo in parts["held_out"]).values()) == {share}


def test_no_message_and_no_order_number_comes_twice():
    assert len({message(row) for row in ALL}) == len(ALL)
    orders = [ticket(row)["order"] for row in ALL if ticket(row)["order"]]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("rows", [SET.train, SET.held_out], ids=["train", "held_out"])
def test_every_value_appears_about_equally_often(rows):
    for field, values in (("intent", INTENTS), ("product", PRODUCTS), ("urgency", URGENCIES)):
        counts = Counter(ticket(row)[field] for row in rows)
        even = len(rows) / len(values)
        assert set(counts) == set(values)
        assert 0.7 * even < min(counts.values()) <= max(counts.values()) < 1.3 * even
    assert 0.2 < sum(ticket(row)["order"] is None for row in rows) / len(rows) < 0.36


def test_held_out_rows_use_no_sentence_of_the_training_rows():
    for pool in POOLS:
        assert not {s.lower().rstrip(".!") for s in pool.train if s} & {s.lower().rstrip(".!") for s in pool.held_out}
    assert not {skeleton(row) for row in SET.train} & {skeleton(row) for row in SET.held_out}


def test_no_sentence_stands_for_two_things():
    """A sentence in the pools of two intents or two urgencies would have two right answers."""
    for table in (ISSUES, URGENCY):
        for (_, one), (_, other) in combinations(table.items(), 2):
            assert not {words(s) for s in one.train + one.held_out if s} & {
                words(s) for s in other.train + other.held_out if s
            }


def test_the_wording_is_varied():
    for intent, pool in ISSUES.items():
        assert len(set(pool.train)) >= 12, intent
        assert len(set(pool.held_out)) >= 4, intent
    assert len({skeleton(row) for row in SET.train}) > 0.95 * len(SET.train)
    texts = [message(row) for row in SET.train]
    assert 40 < sum(text.isupper() for text in texts) < 120
    assert 250 < sum(text.islower() for text in texts) < 550
    slips = re.compile(r"\b(" + "|".join(TYPOS.values()) + r")\b", re.IGNORECASE)
    assert sum(bool(slips.search(text)) for text in texts) > 100
    for spelling in (r"#\d{5}", r"order \d{5}", r"no\.? \d{5}", r"order: \d{5}", r"reference is \d{5}"):
        assert sum(bool(re.search(spelling, text, re.IGNORECASE)) for text in texts) >= 40, spelling


def test_every_sentence_of_every_pool_is_used():
    texts = {split: " ".join(words(message(row)) for row in rows) for split, rows in vars(SET).items()}
    for pool in [*URGENCY.values(), GREETING, CLOSING, SMALL_TALK]:
        for split in Pool._fields:
            unused = [s for s in getattr(pool, split) if words(s) not in texts[split]]
            assert not unused


def test_messages_are_short():
    lengths = sorted(len(message(row).split()) for row in ALL)
    assert lengths[len(lengths) // 2] <= 30
    assert lengths[-1] <= 60


def test_written_files_hold_the_same_rows(tmp_path):
    paths = write_tickets(tmp_path / "data", seed=3, train=30, held_out=12)
    assert [path.name for path in paths] == ["train.jsonl", "held_out.jsonl"]
    read = [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in paths]
    expected = tickets(seed=3, train=30, held_out=12)
    assert read == [expected.train, expected.held_out]


def test_the_largest_set_is_made_and_a_larger_one_is_refused():
    assert len(tickets(train=20_000, held_out=0).train) == 20_000
    with pytest.raises(ValueError, match="at most 20000 together"):
        tickets(train=20_000, held_out=1)
    with pytest.raises(ValueError, match="0 or more"):
        tickets(train=-1)
