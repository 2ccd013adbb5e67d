"""Every check finds what is planted for it, names the rows, and finds nothing in clean rows."""

import copy
import time

import pytest
from planted import PLANTED, clean_rows, label_rows

from topcoat.data.checks.settings import DataChecks
from topcoat.data.checks.table import CHECKS
from topcoat.data.checks.verdict import check

N = 300
NOT_PLANTED = {"capacity", "overlong", "packing", "refused_rows"}
NOT_PLANTED |= {name for name, one in CHECKS.items() if one.family == "leaks"}


@pytest.fixture(scope="module")
def rows():
    """{False: clean rows, True: clean rows with labels}; not to be changed."""
    return {False: clean_rows(N), True: label_rows(N)}


def test_every_check_has_a_policy_and_every_policy_a_check():
    assert list(DataChecks.model_fields) == list(CHECKS)


def test_what_is_not_planted_here_has_tests_of_its_own():
    assert set(CHECKS) - set(PLANTED) == NOT_PLANTED


@pytest.mark.parametrize("labels", [False, True], ids=["free text", "labels"])
@pytest.mark.parametrize("n", [60, N])
def test_nothing_is_found_in_clean_rows(labels, n, corpus):
    verdict = check(corpus(label_rows(n, seed=3) if labels else clean_rows(n, seed=3)), DataChecks())
    assert [(one.check, one.finding.what) for one in verdict.found] == []
    assert verdict.exit_code == 0


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found_and_nothing_else(name, rows, corpus):
    planted = PLANTED[name]
    spoiled = copy.deepcopy(rows[planted.labels])
    expected = planted.spoil(spoiled)
    verdict = check(corpus(spoiled), DataChecks())
    found = {one.check: one for one in verdict.found}
    assert name in found, sorted(found)
    assert set(found) <= {name, *planted.also}
    if expected is not None:
        assert found[name].rows == expected
    finding = found[name].finding
    assert finding.what
    assert finding.why
    assert finding.fix
    assert set(finding.details) <= set(finding.rows)


@pytest.mark.parametrize("name", PLANTED)
def test_a_check_that_is_off_finds_nothing_and_one_that_stops_stops(name, rows, corpus):
    planted = PLANTED[name]
    spoiled = copy.deepcopy(rows[planted.labels])
    planted.spoil(spoiled)
    others = dict.fromkeys(CHECKS, "off")
    off, stop = (check(corpus(spoiled), DataChecks(**others | {name: policy})) for policy in ("off", "stop"))
    assert (off.exit_code, off.found) == (0, [])
    assert stop.exit_code == 1
    assert {one.check for one in stop.stops} == {name}


def test_records_of_one_shape_are_no_lack_of_words(corpus):
    rows = [
        {"prompt": row["prompt"], "completion": f'{{"kind": "order", "urgency": "low", "number": {at}}}'}
        for at, row in enumerate(clean_rows(2000))
    ]
    assert check(corpus(rows), DataChecks()).found == []


def test_of_a_text_without_end_the_beginning_is_looked_at(corpus):
    rows = clean_rows(60)
    rows[7]["completion"] = "Sea. " + "The harbour is near. " * 100_000
    held = corpus(rows)
    assert len(held.answers[7][0]) == 10**6
    said = {one.check: one.finding.details for one in check(held, DataChecks()).found}["odd_rows"]
    assert said == {7: "of texts over 1,000,000 characters only the beginning was looked at"}


RUNS = {
    "line breaks": "b" + "\n" * 300_000 + "c",
    "blanks": "b" + " " * 300_000 + "c",
    "marks": "a" + "\u0301" * 300_000 + "b",
    "dashes": "a" + "-" * 300_000 + "b",
    "brackets": "[" * 150_000 + "]" * 150_000,
    "digits": "1" * 300_000,
    "at signs": "a.b@" * 75_000,
    "keys": "-----BEGIN PRIVATE KEY-----" * 10_000,
    "tags": "<div " * 60_000,
    "entities": "&" * 300_000,
    "links": "ab://c:" * 40_000,
}


@pytest.mark.parametrize("name", RUNS)
def test_a_long_run_of_one_thing_is_checked_in_time_that_grows_with_it(name, corpus):
    rows = [{"prompt": "Tell me.", "completion": RUNS[name]}, {"prompt": RUNS[name], "completion": "Fine, it is."}]
    start = time.process_time()
    check(corpus(rows), DataChecks(one_topic="off"))
    assert time.process_time() - start < 2
