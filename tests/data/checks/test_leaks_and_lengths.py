"""Leaks from training into validation and benchmarks, labels nobody learns, and what max_length does."""

import json
import sys

import pytest
from planted import clean_rows, label_rows

from topcoat.data.checks.corpus import Corpus, Lengths, Most, Setting, read_benchmark
from topcoat.data.checks.files import check_files
from topcoat.data.checks.fix import fix
from topcoat.data.checks.reading import Reading
from topcoat.data.checks.settings import DataChecks
from topcoat.data.checks.verdict import check
from topcoat.data.settings import DataSettings
from topcoat.errors import TopcoatError
from topcoat.report.check_page import render

plain = Reading.parse


@pytest.fixture
def found(corpus):
    """found(train, validation, benchmarks) -> {check: finding}."""

    def run(train, validation=None, benchmarks=(), setting=None):
        mine = corpus(train)
        mine.against = corpus(validation, "validation.jsonl") if validation else None
        mine.benchmarks = list(benchmarks)
        mine.setting = setting or Setting()
        return {one.check: one.finding for one in check(mine, DataChecks()).found}

    return run


def test_no_leak_is_found_between_different_rows(found, benchmark):
    assert found(clean_rows(200), clean_rows(50, seed=1), [benchmark(clean_rows(50, seed=2))]) == {}


def test_a_prompt_on_both_sides_is_a_leak_whatever_its_case(found):
    train, held = clean_rows(100), clean_rows(20, seed=1)
    held[4]["prompt"] = train[30]["prompt"].upper() + "  "
    leak = found(train, held)
    assert set(leak) == {"validation_leaks"}
    assert leak["validation_leaks"].rows == [30]
    assert leak["validation_leaks"].details[30] == "same prompt as validation.jsonl line 5"
    assert leak["validation_leaks"].what.startswith("1 of 20 validation rows")


def test_nearly_a_prompt_is_said_apart(found):
    train, held = clean_rows(100), clean_rows(20, seed=1)
    train[30]["prompt"] = train[30]["prompt"].removesuffix("?") + " and why does it go on like that for years?"
    held[4]["prompt"] = train[30]["prompt"].replace("years", "weeks")
    leak = found(train, held)
    assert set(leak) == {"validation_near"}
    assert leak["validation_near"].rows == [30]


@pytest.fixture
def benchmark(tmp_path):
    def write(rows, name="bench.jsonl") -> Corpus:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_benchmark(path)

    return write


@pytest.mark.parametrize(
    "shape",
    [
        lambda text: {"question": text, "choices": ["a", "b"]},
        lambda text: {"input": text, "target": "A"},
        lambda text: {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "A"}]},
        lambda text: {"id": 7, "passage": text},
    ],
)
def test_a_benchmark_of_any_shape_is_found_whole_or_inside_other_words(shape, found, benchmark):
    questions = [row["prompt"] + " " + row["completion"][:120].strip() for row in clean_rows(30, seed=5)]
    train = clean_rows(120)
    train[10]["prompt"] = questions[3]
    train[20]["completion"] = "Once I was asked this. " + questions[4] + " I did not know what to say about it all."
    leak = found(train, None, [benchmark([shape(text) for text in questions])])
    assert set(leak) == {"benchmark_leaks"}
    assert leak["benchmark_leaks"].rows == [10, 20]
    assert leak["benchmark_leaks"].details == {
        10: "the same as bench.jsonl line 4",
        20: "8-grams of bench.jsonl line 5",
    }
    assert leak["benchmark_leaks"].what == "2 of 30 rows of bench.jsonl stand in the training rows"


def test_validation_rows_that_stand_in_a_benchmark_are_told_apart(found, benchmark):
    held, questions = clean_rows(20, seed=1), clean_rows(30, seed=5)
    held[6]["prompt"] = questions[3]["prompt"]
    held[8]["completion"] = "I was asked this: " + questions[4]["prompt"]
    told = found(clean_rows(100), held, [benchmark([{"question": row["prompt"]} for row in questions])])
    assert set(told) == {"benchmark_leaks"}
    assert told["benchmark_leaks"].what == "2 of 30 rows of bench.jsonl stand in the validation rows"
    assert told["benchmark_leaks"].rows == []
    assert told["benchmark_leaks"].elsewhere == [
        ("validation.jsonl", 7, "the same as bench.jsonl line 4"),
        ("validation.jsonl", 9, "8-grams of bench.jsonl line 5"),
    ]


def test_a_benchmark_that_is_the_validation_file_is_held_against_training_rows_only(found, corpus, benchmark):
    questions = [{"prompt": row["prompt"], "completion": row["completion"]} for row in clean_rows(20, seed=1)]
    train, bench = clean_rows(100), benchmark(questions)
    train[11]["prompt"] = questions[4]["prompt"]
    mine = corpus(train)
    mine.against, mine.benchmarks = corpus(questions, bench.file), [bench]
    told = [one.finding for one in check(mine, DataChecks(validation_leaks="off")).found]
    assert [one.what for one in told] == ["1 of 20 rows of bench.jsonl stand in the training rows"]


def test_a_label_only_the_validation_rows_have_is_said(found):
    held = label_rows(30, ("billing", "delivery", "warranty"), seed=1)
    told = found(label_rows(90), held)
    assert set(told) == {"unseen_labels"}
    assert "'warranty'" in told["unseen_labels"].what
    assert told["unseen_labels"].count == 10
    assert told["unseen_labels"].elsewhere[0] == ("validation.jsonl", 3, "'warranty'")
    assert not told["unseen_labels"].stops


def lengths(*tokens: int) -> Lengths:
    return Lengths(list(range(len(tokens))), list(tokens), [size // 2 for size in tokens])


def test_rows_beyond_max_length_are_counted_and_named(found):
    setting = Setting(lengths=lengths(*[100] * 58, 300, 500), max_length=200, overlong="drop", packing=False)
    told = found(clean_rows(60), setting=setting)
    assert set(told) == {"overlong"}
    assert told["overlong"].rows == [58, 59]
    assert "longer than 200 tokens" in told["overlong"].what
    assert "6.1 % of all beyond it" in told["overlong"].what  # 400 of 6,600
    assert "left out" in told["overlong"].why


@pytest.mark.parametrize(("packing", "fix"), [(True, "raise train.batch_size"), (False, "set data.packing: true")])
def test_positions_that_hold_nothing_are_said(found, packing, fix):
    told = found(clean_rows(60), setting=Setting(fill=0.6, packing=packing))
    assert set(told) == {"packing"}
    assert "60 % of the positions" in told["packing"].what
    assert fix in told["packing"].fix
    assert found(clean_rows(60), setting=Setting(fill=0.9, packing=packing)) == {}


@pytest.mark.parametrize(
    ("targets", "fix"),
    [(5_000_000, "set adapter.r: 40, or more"), (1500, "add rows, or lower adapter.r"), (9000, None)],
)
def test_an_adapter_has_room_for_the_tokens_and_tokens_for_the_room(found, targets, fix):
    told = found(clean_rows(60), setting=Setting(target_tokens=targets, adapter_parameters=2_000_000, adapter_rank=16))
    assert {name: finding.fix for name, finding in told.items()} == ({"capacity": fix} if fix else {})


def test_a_mixture_is_checked_as_one_with_the_file_of_each_row(tmp_path):
    first, second = clean_rows(60), clean_rows(60, seed=1)
    second[4] = dict(first[9])
    for name, rows in (("a.jsonl", first), ("b.jsonl", second)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(
        train=str(tmp_path / "a.jsonl"),
        mixture=[{"train_file": str(tmp_path / name), "weight": 1.0} for name in ("a.jsonl", "b.jsonl")],
        validation=None,
    )
    verdict = check_files(settings)
    (copy,) = verdict.found
    assert verdict.figures.rows == 120
    assert copy.finding.details == {64: "same as a.jsonl line 10"}
    assert verdict.corpus.place(64) == "b.jsonl line 5"
    assert verdict.to_dict()["findings"][0]["rows"][0]["file"].endswith("b.jsonl")
    with pytest.raises(TopcoatError, match="a mixture of several files has no one copy"):
        fix(verdict, settings, tmp_path / "c.jsonl")


def test_columns_are_renamed_and_text_is_made_of_them(tmp_path):
    rows = [{"q": row["prompt"], "a": row["completion"]} for row in clean_rows(60)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = DataSettings(train=str(path), validation=None)
    renamed = check_files(base.model_copy(update={"columns": {"prompt": "q", "completion": "a"}}))
    assert (renamed.figures.form, renamed.found) == ("prompt_completion", [])
    made = check_files(base.model_copy(update={"text_template": "Q: {q}\nA: {a}"}))
    assert made.figures.form == "text"
    with pytest.raises(TopcoatError, match=r"data\.columns names 'question', which no row has"):
        check_files(base.model_copy(update={"columns": {"prompt": "question", "completion": "a"}}))
    with pytest.raises(TopcoatError, match="no format reads a column 'promt'"):
        check_files(base.model_copy(update={"columns": {"promt": "q"}}))


def test_a_copy_leaves_out_long_rows_only_where_the_run_would(found):
    for overlong, dropped in (("error", None), ("drop", None), ("truncate", []), ("split", [])):
        setting = Setting(lengths=lengths(*[100] * 58, 300, 500), max_length=200, overlong=overlong, packing=False)
        assert found(clean_rows(60), setting=setting)["overlong"].drop == dropped


@pytest.mark.parametrize(
    ("context", "counted", "fix"),
    [
        (512, 60, "set data.max_length: 500, or set data.overlong: drop, truncate or split"),
        (400, 60, "set data.overlong: drop, truncate or split (the model's context is 400 tokens)"),
        (512, 120, "set data.max_length: auto, or set data.overlong: drop, truncate or split"),
    ],
)
def test_rows_that_a_run_stops_at_stop_it_whatever_the_policy(corpus, context, counted, fix):
    mine = corpus(clean_rows(counted))
    mine.setting = Setting(lengths=lengths(*[100] * 58, 300, 500), max_length=200, context_length=context)
    verdict = check(mine, DataChecks(overlong="warn"))
    told = next(one for one in verdict.found if one.check == "overlong")
    assert told.policy == "stop"
    assert (told.finding.why, told.finding.fix) == ("with overlong: error the run stops at them", fix)
    assert verdict.exit_code == 1
    assert "stops a run" in verdict.headline()
    assert check(mine, DataChecks(overlong="off")).exit_code == 0


def test_long_validation_rows_stop_a_run_too(corpus):
    mine = corpus(clean_rows(60))
    known = {"lengths": lengths(*[100] * 60), "max_length": 200, "validation_tokens": [90, 300, 250]}
    mine.setting = Setting(**known, context_length=512)
    verdict = check(mine, DataChecks())
    (told,) = (one for one in verdict.found if one.check == "overlong")
    assert told.policy == "stop"
    assert told.finding.what == "2 validation rows longer than 200 tokens"
    assert told.finding.fix.startswith("set data.max_length: 300, or")
    assert told.finding.elsewhere == []  # which rows the sizes are of is not known here
    mine.against = corpus(clean_rows(3, seed=1), "validation.jsonl")
    (told,) = (one for one in check(mine, DataChecks()).found if one.check == "overlong")
    assert told.finding.elsewhere == [("validation.jsonl", 2, "300 tokens"), ("validation.jsonl", 3, "250 tokens")]
    mine.setting = Setting(**known, overlong="drop")
    assert check(mine, DataChecks()).exit_code == 0


def test_the_page_of_a_mixture_names_the_file_of_each_row(tmp_path):
    first, second = clean_rows(60), clean_rows(60, seed=1)
    second[4] = dict(first[9])
    for name, rows in (("a.jsonl", first), ("b.jsonl", second)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = [{"train_file": str(tmp_path / name), "weight": 1.0} for name in ("a.jsonl", "b.jsonl")]
    page = render(check_files(DataSettings(train=str(tmp_path / "a.jsonl"), mixture=mixture, validation=None)))
    assert '<th scope="row">b.jsonl line 5</th>' in page
    assert "<h1>a.jsonl, b.jsonl</h1>" in page


@pytest.mark.parametrize(
    ("most", "seen", "is_cut"),
    [
        (Most(60, 10**9), 60, False),
        (Most(59, 10**9), 59, True),
        (Most(60, 59 * 10**5), 59, True),
        (Most(60, 59 * 10**5 + 1), 60, False),
        (Most(60, 1), 1, True),
    ],
)
def test_no_more_rows_or_bytes_are_held_than_asked_for_of_either_file(tmp_path, most, seen, is_cut):
    overhead = sys.getsizeof("")
    row = {"prompt": "a" * 1000, "completion": "b" * (10**5 - 1000 - 2 * overhead)}  # 100,000 bytes in memory
    for name in ("t.jsonl", "v.jsonl"):
        (tmp_path / name).write_text((json.dumps(row) + "\n") * 60)
    settings = DataSettings(train=str(tmp_path / "t.jsonl"), validation=str(tmp_path / "v.jsonl"))
    corpus = check_files(settings, most=most, cheap_only=True).corpus
    for held in (corpus, corpus.against):
        assert (len(held), held.is_cut, held.text_bytes) == (seen, is_cut, seen * 10**5)


def test_a_file_that_is_not_reached_is_a_part_that_was_not_looked_at(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in clean_rows(60)))
    mixture = [{"train_file": str(tmp_path / name)} for name in ("a.jsonl", "b.jsonl")]
    settings = DataSettings(train=str(tmp_path / "a.jsonl"), mixture=mixture, validation=None)
    corpus = check_files(settings, most=Most(60, 10**9), cheap_only=True).corpus
    assert (len(corpus), corpus.is_cut) == (60, True)
    assert not check_files(settings, most=Most(120, 10**9), cheap_only=True).corpus.is_cut


def test_rows_of_megabytes_are_parsed_a_few_at_a_time(tmp_path, monkeypatch):
    parsed = []
    monkeypatch.setattr(Reading, "parse", lambda self, rows, form: parsed.append(len(rows)) or plain(self, rows, form))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": "a b " * 10**6}) + "\n" for _ in range(8)))
    check_files(DataSettings(train=str(tmp_path / "t.jsonl"), validation=None), most=Most(8, 10**9), cheap_only=True)
    assert parsed == [3, 3, 2]
