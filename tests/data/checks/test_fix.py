"""--fix: a cleaned copy in which nothing that was fixed is found again; the original stays byte for byte."""

import copy
import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import PLANTED, clean_rows, label_rows

from topcoat.data.checks.damage import repair
from topcoat.data.checks.files import check_files
from topcoat.data.checks.fix import PACKERS, fix, mend, write_rows
from topcoat.data.checks.table import CHECKS
from topcoat.data.opening import PACKED
from topcoat.data.rows import read_rows
from topcoat.data.settings import DataSettings
from topcoat.errors import Refused, TopcoatError

MENDED = [name for name in PLANTED if CHECKS[name].drops or CHECKS[name].rewrite]


@pytest.fixture
def fixed(tmp_path):
    """fixed(rows) -> (what the copy was found to have, what was done, rows of the copy)."""

    def run(rows, name="train.jsonl", out="clean.jsonl", kind=".jsonl"):
        source, target = tmp_path / name, tmp_path / out
        write_rows(source, kind, rows)
        before = source.read_bytes()
        verdict = check_files(DataSettings(train=str(source), validation=None))
        done = fix(verdict, DataSettings(train=str(source)), target)
        assert source.read_bytes() == before
        again = check_files(DataSettings(train=str(target), validation=None))
        return {one.check for one in again.found}, done, read_rows(target)

    return run


@pytest.mark.parametrize("name", MENDED)
def test_what_was_fixed_is_not_found_again(name, fixed):
    planted = PLANTED[name]
    rows = copy.deepcopy(label_rows(200) if planted.labels else clean_rows(200))
    planted.spoil(rows)
    found, done, kept = fixed(rows)
    assert name not in found
    assert done.read == 200
    assert done.written == len(kept) == 200 - sum(done.left_out.values())
    assert done.mended or done.left_out


@settings(max_examples=8, deadline=None)
@given(
    names=st.sets(st.sampled_from([name for name in MENDED if not PLANTED[name].labels]), min_size=2),
    seed=st.integers(0, 99),
)
def test_any_mixture_of_defects_is_gone_after_one_fix(names, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    rows = clean_rows(150, seed=seed)
    for name in sorted(names):
        PLANTED[name].spoil(rows)
    write_rows(folder / "a.jsonl", ".jsonl", rows)
    data = DataSettings(train=str(folder / "a.jsonl"), validation=None)
    fix(check_files(data), data, folder / "b.jsonl")
    again = check_files(DataSettings(train=str(folder / "b.jsonl"), validation=None))
    assert not {one.check for one in again.found} & set(MENDED)


def test_rows_that_were_right_stay_as_they_are(fixed):
    rows = clean_rows(100)
    rows[7]["completion"] = "The cafÃ© is near."
    rows.append(dict(rows[3]))
    rows[5]["weight"], rows[6]["note"] = 3, {"deep": ["ü", None, 1.5]}
    _, done, kept = fixed(copy.deepcopy(rows))
    rows[7]["completion"] = "The café is near."
    assert [row.values for row in kept] == rows[:-1]
    assert (done.mended, done.left_out) == ({"mojibake": 1}, {"exact_duplicates": 1})
    assert done.lines()[1:] == ["mojibake: 1 row mended", "exact_duplicates: 1 row left out"]


@pytest.mark.parametrize("out", ["c.jsonl", "c.json", "c.csv", "c.tsv", "c.parquet", "c.jsonl.gz"])
def test_the_copy_may_be_of_any_kind(out, fixed):
    _, _, kept = fixed([*clean_rows(60), clean_rows(1)[0]], out=out)
    assert [row.values for row in kept] == clean_rows(60)


def test_the_same_fix_gives_the_same_bytes(tmp_path):
    write_rows(tmp_path / "a.jsonl.gz", ".jsonl", clean_rows(5))
    write_rows(tmp_path / "b.jsonl.gz", ".jsonl", clean_rows(5))
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).count(b"\n") == 5


def test_nothing_is_overwritten_and_an_ending_is_needed(tmp_path, fixed):
    (tmp_path / "clean.jsonl").write_text("mine")
    with pytest.raises(TopcoatError, match=r"clean\.jsonl exists already"):
        fixed(clean_rows(60))
    assert (tmp_path / "clean.jsonl").read_text() == "mine"
    with pytest.raises(TopcoatError, match="no ending of a file of rows"):
        fixed(clean_rows(60), out="clean.txt")


def test_a_file_of_which_nothing_would_be_left_is_refused(fixed, tmp_path):
    rows = [{"prompt": f"Say it {at}", "completion": " "} for at in range(60)]
    with pytest.raises(Refused, match="nothing is left of 60 rows"):
        fixed(rows)
    assert not (tmp_path / "clean.jsonl").exists()


def test_the_worse_answers_of_pairs_are_checked_and_mended_too(fixed):
    rows = [{"prompt": f"Question {i}?", "chosen": f"Good answer {i}.", "rejected": f"Bad one {i}."} for i in range(40)]
    rows[3]["rejected"] = "The key is AKIAQ3EGTZJ5VW2NXB7C, use it."
    rows[5]["rejected"] = "The cafÃ© is closed."
    rows[7]["rejected"] = "Write to anna.kowalska@fastmail.com at once."
    found, done, kept = fixed(rows)
    assert done.mended == {"secrets": 1, "mojibake": 1, "personal_data": 1}
    answers = [row.values["rejected"] for row in kept]
    assert not any("AKIA" in answer or "fastmail" in answer for answer in answers)
    assert "The café is closed." in answers
    assert not {"secrets", "mojibake", "personal_data"} & found


@given(st.text(max_size=30))
def test_text_that_was_damaged_comes_back_and_other_text_stays(text):
    for encoding in ("latin-1", "cp1252"):
        try:
            damaged = text.encode().decode(encoding)
        except UnicodeError:
            continue
        assert repair(damaged) == repair(text)
    if text.isascii():
        assert repair(text) == text


@pytest.mark.parametrize("text", ["Ã is a letter", "À côté, où es-tu ?", "São Paulo, Ångström, naïve", "ÂÃÄ", "Ð и Ñ"])
def test_text_that_only_looks_damaged_stays(text):
    assert repair(text) == text


def test_names_are_never_mended():
    row = {"messages": [{"role": " user ", "content": " x "}], "id": " 7 "}
    assert mend(row, str.strip) == {"messages": [{"role": " user ", "content": "x"}], "id": " 7 "}
    assert json.dumps(row)


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_a_copy_is_packed_as_its_name_says_and_read_back(packing, kind, tmp_path):
    rows = clean_rows(5)
    for name in ("one", "two"):
        write_rows(tmp_path / f"{name}{kind}{packing}", kind, rows)
    assert [row.values for row in read_rows(tmp_path / f"one{kind}{packing}")] == rows
    assert (tmp_path / f"one{kind}{packing}").read_bytes() == (tmp_path / f"two{kind}{packing}").read_bytes()


def test_every_packing_that_is_read_is_written():
    assert set(PACKERS) == set(PACKED)
