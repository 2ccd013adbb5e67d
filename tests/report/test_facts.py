"""Nested dicts as lines: names as words, numbers with the unit their key names."""

from topcoat.report.facts import facts


def test_units_come_from_the_key():
    values = {
        "peak_bytes": 3 * 2**30,
        "elapsed_s": 250,
        "train_seconds": 42.0,
        "tokens_per_s": 1204.4,
        "share_trained": 0.317,
        "events": {"truncated": {"count": 12, "rows": [f"line {n}" for n in range(12)]}},
        "rows": 12000,
        "packing": True,
        "columns": ["a", "b"],
        "path": "runs/x",
        "missing": None,
        "nested": {"deep": {"max_length": 128}, "empty": {}},
        "lengths": [{"count": 2, "name": "x"}],
        "none": [],
    }
    assert list(facts(values)) == [
        ("peak", "3.0 GiB"),
        ("elapsed", "4m 10s"),
        ("train", "42s"),
        ("tokens per s", "1204"),
        ("share trained", "32 %"),
        ("events · truncated · count", "12"),
        ("events · truncated · rows", ", ".join(f"line {n}" for n in range(10)) + ", and 2 more"),
        ("rows", "12,000"),
        ("packing", "yes"),
        ("columns", "a, b"),
        ("path", "runs/x"),
        ("nested · deep · max length", "128"),
        ("lengths", "count 2, name x"),
        ("none", "none"),
    ]


def test_a_mapping_without_values_gives_no_lines():
    assert list(facts({})) == []
