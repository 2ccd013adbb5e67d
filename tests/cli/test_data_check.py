"""topcoat data check and split, as typed: exit codes, what is printed, files written, recipes."""

import copy
import json

import pytest
from planted import PLANTED, clean_rows, label_rows
from ruamel.yaml import YAML

from topcoat.cli import waiting
from topcoat.data.checks.table import CHECKS


@pytest.fixture
def file(tmp_path):
    """file("a.jsonl", rows) -> its path as text."""

    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def spoiled(*names, n=120):
    rows = clean_rows(n)
    for name in names:
        PLANTED[name].spoil(rows)
    return rows


def test_clean_rows_are_fine(topcoat, file):
    done = topcoat("data", "check", file("a.jsonl", clean_rows(80)))
    assert done.code == 0
    assert "80 rows, prompt_completion, about" in done.out
    assert f"nothing found by {len(CHECKS)} checks" in done.out


def test_a_finding_is_said_with_rows_why_and_fix(topcoat, file):
    done = topcoat("data", "check", file("a.jsonl", spoiled("mojibake")))
    assert done.code == 0
    assert "warn mojibake: 2 rows hold text that was decoded with the wrong encoding" in done.out
    assert "why   the model learns to write it" in done.out
    assert "a.jsonl:14 (“Ã©” for “é”)" in done.out
    assert "1 finding, none stops a run" in done.out


def test_the_policy_decides_the_exit_code(topcoat, file):
    path = file("a.jsonl", spoiled("mojibake"))
    assert topcoat("data", "check", path, "data.checks.mojibake=stop").code == 1
    assert topcoat("data", "check", path, "data.checks.mojibake=off").code == 0
    assert topcoat("data", "check", file("b.jsonl", spoiled("secrets"))).code == 1


def test_an_unknown_check_is_refused_with_the_nearest(topcoat, file):
    done = topcoat("data", "check", file("a.jsonl", clean_rows(60)), "data.checks.near_dupes=stop")
    assert done.code == 2
    assert "did you mean near_duplicates?" in done.err


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"a": 1}\n', b"\xff\xfe{\x00"])
def test_what_cannot_be_read_is_exit_code_2(content, topcoat, tmp_path):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    done = topcoat("data", "check", str(path))
    assert done.code == 2
    assert "a.jsonl" in done.err


def test_json_has_everything(topcoat, file):
    path = file("a.jsonl", spoiled("mojibake", "secrets"))
    done = topcoat("data", "check", path, "--json")
    assert done.code == 1
    said = done.json
    assert said["ok"] is False
    assert said["figures"]["rows"] == 120
    assert {one["check"]: one["count"] for one in said["findings"]} == {"secrets": 2, "mojibake": 2}
    assert said["findings"][1]["rows"][0] == {"file": path, "line": 14, "said": "“Ã©” for “é”"}
    assert said["checks"] == list(CHECKS)


def test_rows_are_listed_and_the_page_and_the_copy_written(topcoat, file, tmp_path):
    path = file("a.jsonl", spoiled("mojibake", "exact_duplicates", "secrets"))
    names = [str(tmp_path / name) for name in ("page.html", "rows.jsonl", "clean.jsonl")]
    done = topcoat("data", "check", path, "--html", names[0], "--rows", names[1], "--fix", names[2])
    assert done.code == 1
    listed = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {(row["check"], row["line"]) for row in listed} >= {("exact_duplicates", 41), ("secrets", 20)}
    assert "exact_duplicates: 2 rows left out" in done.out
    assert "AKIAQ3EGPJ7LMN2RSTUV" not in (tmp_path / "page.html").read_text() + done.out
    assert topcoat("data", "check", names[2]).code == 0


@pytest.fixture
def recipe_of(tiny_recipe, tmp_path):
    """recipe_of({"train": "t.jsonl"}) -> the path of a recipe with this data."""

    def write(data, **sections):
        recipe = tiny_recipe(**sections) | {"data": data}
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        return str(tmp_path / "r.yaml")

    return write


@pytest.mark.parametrize("option", ["--html", "--rows", "--fix"])
def test_the_file_itself_is_never_written(option, topcoat, file, tmp_path):
    path = file("a.jsonl", spoiled("mojibake"))
    before = (tmp_path / "a.jsonl").read_bytes()
    done = topcoat("data", "check", path, option, path)
    assert done.code == 2
    assert f"{path} is a file that this command reads\n  where: {option}\n  fix:   name another file" in done.err
    assert (tmp_path / "a.jsonl").read_bytes() == before


@pytest.mark.parametrize("option", ["--html", "--rows", "--fix"])
@pytest.mark.parametrize("name", ["t.jsonl", "u.jsonl", "v.jsonl", "w.jsonl", "b.jsonl", "r.yaml", "link.jsonl"])
def test_nothing_a_check_reads_is_ever_written(option, name, topcoat, file, recipe_of, tmp_path):
    for at, other in enumerate(("t.jsonl", "u.jsonl", "v.jsonl", "w.jsonl", "b.jsonl")):
        file(other, clean_rows(20, seed=at))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "v.jsonl")
    parts = [{"train_file": str(tmp_path / part)} for part in ("t.jsonl", "u.jsonl")]
    recipe = recipe_of({"mixture": parts, "validation": str(tmp_path / "v.jsonl")})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    others = ["--against", str(tmp_path / "w.jsonl"), "--against-eval", str(tmp_path / "b.jsonl")]
    done = topcoat("data", "check", recipe, *others, option, str(tmp_path / "." / name))
    assert done.code == 2
    assert f"{name} is a file that this command reads" in done.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_two_outputs_are_two_files(topcoat, file, tmp_path):
    path = file("a.jsonl", clean_rows(60))
    done = topcoat("data", "check", path, "--html", str(tmp_path / "o"), "--rows", str(tmp_path / "." / "o"))
    assert done.code == 2
    assert "--html and --rows are the same file" in done.err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("option", ["--html", "--rows", "--fix"])
def test_a_file_that_is_there_is_kept_and_an_earlier_report_replaced(option, topcoat, file, tmp_path):
    path = file("a.jsonl", spoiled("mojibake"))
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"check": "of mine", "line": 3}\n')
    done = topcoat("data", "check", path, option, str(mine))
    assert done.code == 2
    assert f"{mine} is there already, and topcoat did not write it as a report" in done.err
    assert f"  where: {option}\n  fix:   name another file, or remove it" in done.err
    assert mine.read_text() == '{"check": "of mine", "line": 3}\n'
    out = tmp_path / "out.jsonl"
    again = 2 if option == "--fix" else 0  # a cleaned copy cannot be told from rows of anyone
    assert [topcoat("data", "check", path, option, str(out)).code for _ in range(2)] == [0, again]


@pytest.mark.parametrize("name", ["folder", "nowhere.jsonl"])
def test_what_is_no_file_is_not_written_over(name, topcoat, file, tmp_path):
    path = file("a.jsonl", clean_rows(60))
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere.jsonl").symlink_to(tmp_path / "gone.jsonl")
    done = topcoat("data", "check", path, "--rows", str(tmp_path / name))
    assert done.code == 2
    assert f"{name} is there already" in done.err


def test_an_empty_list_of_an_earlier_check_is_replaced(topcoat, file, tmp_path):
    out = str(tmp_path / "rows.jsonl")
    for rows in (clean_rows(60), spoiled("mojibake")):
        assert topcoat("data", "check", file("a.jsonl", rows), "--rows", out).code == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2


def test_against_validation_and_benchmarks(topcoat, file):
    train, held = clean_rows(100), clean_rows(20, seed=1)
    held[2]["prompt"] = train[9]["prompt"]
    questions = [{"question": row["prompt"]} for row in clean_rows(20, seed=2)]
    train[11]["prompt"] = questions[4]["question"]
    paths = file("t.jsonl", train), file("v.jsonl", held), file("b.jsonl", questions)
    done = topcoat("data", "check", paths[0], "--against", paths[1], "--against-eval", paths[2], "--json")
    assert done.code == 1
    assert {one["check"]: one["rows"][0]["line"] for one in done.json["findings"]} == {
        "validation_leaks": 10,
        "benchmark_leaks": 12,
    }


def test_a_recipe_counts_tokens_and_obeys_its_policies(topcoat, file, tiny_recipe, tmp_path):
    recipe = tiny_recipe(data={"train": file("t.jsonl", spoiled("mojibake")), "validation": 0.1, "max_length": 256})
    recipe["data"] |= {"checks": {"mojibake": "stop"}, "overlong": "truncate"}
    with (tmp_path / "r.yaml").open("w") as out:
        YAML().dump(recipe, out)
    done = topcoat("data", "check", str(tmp_path / "r.yaml"), "--json")
    assert done.code == 1
    assert done.json["figures"]["exact"] is True
    assert done.json["figures"]["max_length"] == 256
    assert {one["check"]: one["policy"] for one in done.json["findings"]}["mojibake"] == "stop"


def test_a_recipe_that_training_refuses_is_no_fine_recipe(topcoat, file, recipe_of, tmp_path):
    turn = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    (tmp_path / "t.jinja").write_text("{% for m in messages if m.role != 'system' %}" + turn + "{% endfor %}")
    rows = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in clean_rows(60)
    ]
    for row in rows[::2]:
        row["messages"].insert(0, {"role": "system", "content": "Be brief."})
    data = {"train": file("t.jsonl", rows), "validation": 0.1}
    recipe = recipe_of(data, model={"chat_template": str(tmp_path / "t.jinja")})
    done = topcoat("data", "check", recipe, "--rows", str(tmp_path / "rows.jsonl"))
    assert done.code == 1
    assert "stop refused_rows: 30 rows refused by `topcoat train`" in done.out
    assert 't.jsonl:1 (the chat template leaves out message 1 (system): "Be brief.")' in done.out
    listed = [json.loads(line)["line"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert listed == list(range(1, 61, 2))
    assert topcoat("train", recipe).code == 2
    assert topcoat("data", "check", recipe, "data.allow=[dropped_turns]").code == 0


def test_training_says_what_is_found_and_stops_where_it_should(topcoat, file, tiny_recipe, tmp_path):
    recipe = tiny_recipe(data={"train": file("t.jsonl", spoiled("mojibake", "secrets")), "validation": 0.1})
    recipe["train"]["max_steps"] = 1
    with (tmp_path / "r.yaml").open("w") as out:
        YAML().dump(recipe, out)
    done = topcoat("train", str(tmp_path / "r.yaml"))
    assert done.code == 1
    assert "warning: mojibake: 2 rows hold" in done.out
    assert "secrets: 2 rows hold secrets: AWS access key (1), password in a URL (1)" in done.err
    assert "set data.checks.secrets: warn" in done.err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert topcoat("train", str(tmp_path / "r.yaml"), "data.checks.secrets=warn").code == 0


def test_a_split_is_written_with_its_manifest_and_never_over_another(topcoat, file, tmp_path):
    path = file("t.jsonl", label_rows(200))
    for out in ("one", "two"):
        done = topcoat("data", "split", path, "--out", str(tmp_path / out), "--seed", "5", "--json")
        assert done.code == 0
    names = sorted(item.name for item in (tmp_path / "one").iterdir())
    assert names == ["manifest.json", "test.jsonl", "train.jsonl", "validation.jsonl"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    told = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert {name: part["rows"] for name, part in told["parts"].items()} == {"train": 160, "validation": 20, "test": 20}
    assert (told["seed"], told["by"], told["source"]["rows"]) == (5, "label", 200)
    again = topcoat("data", "split", path, "--out", str(tmp_path / "one"))
    assert again.code == 2
    assert "exists already" in again.err


def test_a_split_that_fails_leaves_no_folder(topcoat, file, tmp_path):
    path = file("t.jsonl", [copy.deepcopy(clean_rows(1)[0])] * 9)
    assert topcoat("data", "split", path, "--out", str(tmp_path / "out")).code == 1
    assert [item.name for item in tmp_path.iterdir()] == ["t.jsonl"]


@pytest.mark.parametrize("arguments", [(), ("data.columns={text: prompt}", "train.objective=classification")])
def test_texts_with_labels_are_checked_and_split_by_their_labels(topcoat, file, tmp_path, arguments):
    name = "prompt" if arguments else "text"
    rows = [{name: row["prompt"], "label": row["completion"]} for row in label_rows(200)]
    for row in rows[:40]:
        row["label"] = "billing"
    rows[50]["label"] = "Billing"
    path = file("t.jsonl", rows)
    said = topcoat("data", "check", path, *arguments, "--json").json
    assert said["figures"]["form"] == "classification"
    assert sum(said["figures"]["labels"].values()) == 200
    assert {one["check"]: one["rows"][0]["line"] for one in said["findings"] if one["rows"]} == {"label_spelling": 51}
    done = topcoat("data", "split", path, *arguments, "--out", str(tmp_path / "parts"), "--json")
    assert done.json["by"] == "label"
    assert done.json["strata"]["delivery"]["train"] > done.json["strata"]["delivery"]["test"] > 0


@pytest.mark.parametrize("command", ["check", "split"])
def test_looking_for_labels_is_told_as_it_takes_time(command, topcoat, file, tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "LINE_EVERY_S", 0)
    rows = [{"text": row["prompt"], "label": row["completion"]} for row in label_rows(2100)]
    out = ["--out", str(tmp_path / "parts")] if command == "split" else []
    done = topcoat("data", command, file("t.jsonl", rows), *out)
    assert done.code == 0
    assert "reading the labels of t.jsonl 0\nreading the labels of t.jsonl 2,048\n" in done.out


def test_a_label_that_is_none_is_said_and_the_texts_are_checked_alone(topcoat, file):
    rows = [{"text": row["prompt"], "label": str(at)} for at, row in enumerate(clean_rows(80))]
    done = topcoat("data", "check", file("t.jsonl", rows))
    assert done.code == 0
    assert "note: 'label' is not checked as a label: 'label' has 80 different labels in 80 rows" in done.out
    assert "80 rows, text" in done.out


def test_what_reading_brings_up_is_noted(topcoat, tmp_path):
    rows = [json.dumps(row) for row in clean_rows(60)]
    rows[6] = rows[6][:-1] + ', "score": NaN}'
    (tmp_path / "t.jsonl").write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    done = topcoat("data", "check", str(tmp_path / "t.jsonl"))
    assert done.code == 0
    assert "note: t.jsonl starts with a byte-order mark (U+FEFF); it was skipped" in done.out
    assert "note: t.jsonl line 7 holds NaN or Infinity, which is not JSON (1 in all)" in done.out
